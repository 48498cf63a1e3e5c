//! The backends of the queue: one suite on all, and what each does in its own way.

mod conformance;
mod mariadb;
mod outage;
mod postgres;
mod sqlite;
mod urls;
