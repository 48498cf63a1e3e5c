//! Apps, functions and triggers as the APIs show them, with their validation (`spec/api-v2.md`, parts 2 and 3).
//!
//! Owns what a valid resource is, what creating and updating one means, and the words of each refusal. Does
//! no I/O and reads no clock: callers pass `now`. Field names and omissions in JSON are Fn's, to the letter.

mod annotations;
mod app;
mod call;
mod error;
mod function;
mod node;
mod queue;
mod schedule;
mod trigger;
mod why;
mod wire;

pub use annotations::{
    Annotations, CONCURRENCY_MAX, CONTENT_TYPE, HTTP_ENDPOINT, IMAGE_DIGEST, INVOKE_ENDPOINT, JITTER_SECONDS,
    MISFIRE, NEXT_TICK, ON_FAILURE, ON_SUCCESS, PAYLOAD, RETRY, TIME_ZONE,
};
pub use app::{App, AppInput, Shape};
pub use call::{Call, CallState};
pub use error::ApiError;
pub use function::{FunctionInput, FunctionResource, resolve};
pub use node::{FleetResource, NodeFunction, NodeResource, ScaleResource};
pub use queue::{QueueFunction, QueueResource, QueuedCall, Redriven};
pub use schedule::ScheduledCall;
pub use trigger::{Trigger, TriggerInput, TriggerType};
pub use why::{CallWhy, FunctionWhy};
pub use wire::{Config, from_json, go_json};

/// Longest name of an app, function or trigger, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Checks a name's length and characters. The refusals are for one that is missing, too long, and otherwise bad.
fn check_name(name: &str, fits: fn(char) -> bool, refusals: [ApiError; 3]) -> Result<(), ApiError> {
    let [missing, too_long, invalid] = refusals;
    if name.is_empty() {
        return Err(missing);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(too_long);
    }
    if name.chars().all(fits) { Ok(()) } else { Err(invalid) }
}

/// What app and trigger names are made of: letters and digits of any script, `_` and `-`.
fn is_in_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-')
}
