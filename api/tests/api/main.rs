//! What clients of the API, the balancer and the agents' records see, driven through the public surface.

mod apps;
mod support;
