//! What clients of the API, the balancer and the agents' records see, driven through the public surface.

mod annotations;
mod apps;
mod calls;
mod databases;
mod feed;
mod fleet;
mod fns;
mod lists;
mod mariadb;
mod openapi;
mod outage;
mod portable;
mod postgres;
mod restart;
mod schedules;
mod schema;
mod server;
mod sharing;
mod sqlite;
mod support;
mod triggers;
