//! The fleet: which nodes there are, what they have warm, and which one gets a call.
//!
//! Everything here is pure: no I/O, and time is passed in. One owner keeps the [`Fleet`] and feeds it members and
//! reports; each worker keeps a [`FleetReader`] and asks it for a [`Seat`] per try. Balancers share no state; that
//! they agree on a function's home follows from the [`ring`].

pub mod membership;
pub mod node;
pub mod placement;
pub mod retry;
pub mod ring;
pub mod seat;
pub mod view;

#[cfg(test)]
mod testing;

pub use membership::{Applied, Fleet, LivenessPolicy, NodeConfig};
pub use node::{Address, Demand, Node, NodeSerial, NodeState};
pub use placement::{Decision, NoPlace, PlacementPolicy, Reason, TriedSet, place};
pub use retry::{Attempts, Next, RetryPolicy};
pub use ring::{Ring, RingKey, Weight};
pub use seat::Seat;
pub use view::{FleetReader, View};
