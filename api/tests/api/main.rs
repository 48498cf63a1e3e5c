//! What clients of the API, the balancer and the agents' records see, driven through the public surface.

mod annotations;
mod apps;
mod calls;
mod feed;
mod fleet;
mod fns;
mod lists;
mod openapi;
mod postgres;
mod restart;
mod schedules;
mod server;
mod sharing;
mod sqlite;
mod support;
mod triggers;
