//! The fleet: which nodes there are, what they have warm, and which one gets a call.
//!
//! Everything here is pure: no I/O, and time is passed in. One owner keeps the [`Fleet`] and feeds it members and
//! reports; each worker keeps a [`FleetReader`] and asks it for a [`Seat`] per try; what finds none waits in the
//! [`WaitingRoom`]. Balancers share no state; that they agree on a function's home follows from the [`ring`].

pub mod bounds;
pub mod concurrency;
pub mod demand;
pub mod detail;
pub mod ejection;
mod entry;
pub mod explain;
mod index;
pub mod liveness;
pub mod membership;
pub mod node;
pub mod placement;
pub mod policy;
mod rendezvous;
pub mod retry;
pub mod ring;
pub mod room;
pub mod scale;
pub mod scale_news;
pub mod seat;
pub mod slots;
pub mod standing;
pub mod trail;
pub mod view;
pub mod waiting;

#[cfg(test)]
mod testing;

pub use bounds::Absurd;
pub use concurrency::{Limit, Limits, Running};
pub use demand::Demand;
pub use detail::{FunctionDetail, NodeDetail};
pub use ejection::EjectionPolicy;
pub use explain::{Explanation, explain};
pub use liveness::LivenessPolicy;
pub use membership::{Applied, EjectionCounts, Fleet, FleetConfig, Heard, NodeConfig};
pub use node::{Address, Node, NodeSerial};
pub use placement::{Ask, Decision, NoPlace, PlacementPolicy, Reason, TriedSet, place};
pub use policy::{Policy, PolicyName};
pub use retry::{Attempts, Next, RetryPolicy, WaitReason, unavailable};
pub use ring::{Ring, RingKey, Weight};
pub use room::{Waiting, WaitingRoom};
pub use scale::{ScalePolicy, ScaleReason, ScaleSignal, Scaler};
pub use seat::Seat;
pub use standing::{NodeState, Standing};
pub use trail::{Trail, Try};
pub use view::{FleetReader, View};
pub use waiting::{RoomFull, WaitingLimits};
