//! Who may call, how much a call may carry, and how many calls there may be at once.
//!
//! Small and pure: each guard answers from its arguments and its own counter.

mod limits;
mod token;

pub use limits::{Admitted, BodyLimit, InFlightLimit, TooLarge, TooManyCalls};
pub use token::{TokenGuard, Unauthorized};
