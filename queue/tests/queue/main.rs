//! The backends of the queue: one suite on all, and what each does in its own way.

mod conformance;
mod kafka;
mod mariadb;
mod outage;
mod postgres;
mod redis;
mod sqlite;
mod urls;
