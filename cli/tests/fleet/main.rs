//! A fleet of real processes on addresses of their own, under wrk's load, while its parts are killed, stopped, cut off
//! and restarted: `make test-fleet`. Needs root, for the network namespaces that it makes and removes.

#[path = "../../../agent/tests/support/images.rs"]
mod images;

mod alone;
mod broken;
mod crowd;
mod database;
mod fleet;
mod intruders;
mod load;
mod network;
mod operators;
mod part;
