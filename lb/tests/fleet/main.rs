//! Fleet and placement in virtual time: the modules that run in production before nodes that are simulated.

mod model;
mod waiting;
