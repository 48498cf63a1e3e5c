//! Functions in Rust.
//!
//! A function is a small program that answers calls over a unix socket. This crate is everything it needs: it
//! blocks, uses threads only when connections overlap, and depends on nothing but the standard library unless
//! the feature `json` (on by default) is wanted.
//!
//! ```no_run
//! use kiln_fdk::{Context, Result};
//!
//! fn main() -> std::process::ExitCode {
//!     kiln_fdk::run(|_: &Context, name: String| -> Result<String> { Ok(format!("Hello {name}!\n")) })
//! }
//! ```
//!
//! Input is a `Vec<u8>`, a `String`, `()` or a `Json<T>` (or anything else that is [`FromInput`]); output is
//! one of these, a [`Response`] with status and headers, or anything else that is [`IntoResponse`]. Bodies too
//! large for memory go through [`run_streaming`].
//!
//! An error or a panic fails the call (the caller gets 502) and leaves the function running; what went wrong is
//! in the call's log, as is everything else that the function prints.

mod context;
mod http;
mod input;
#[cfg(feature = "json")]
mod json;
mod output;
mod serve;
mod signal;
mod time;

use std::error::Error as StdError;
use std::process::ExitCode;

pub use context::Context;
pub use http::Input;
pub use input::FromInput;
#[cfg(feature = "json")]
pub use json::Json;
pub use output::{IntoResponse, Output, Response};

/// Why a call failed. Any error type and any text converts into it: `?` and `Err("no such city".into())` work.
pub type Error = Box<dyn StdError + Send + Sync>;

/// What a function returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Serves calls with `function` until the process is told to end. Returns only if it cannot start; the reason
/// is printed.
///
/// Calls come one at a time, so `function` may keep state between them. Input that cannot be read as `I` never
/// reaches it: the client of an HTTP trigger gets 400, any other caller 502.
pub fn run<I, O>(mut function: impl FnMut(&Context, I) -> Result<O> + Send + 'static) -> ExitCode
where
    I: FromInput,
    O: IntoResponse,
{
    run_streaming(move |context, input, output| {
        let response = match I::from_input(input.read_whole()?) {
            Ok(value) => function(context, value)?.into_response()?,
            Err(error) if context.is_http() => {
                eprintln!("bad input: {error}");
                Response::message(400, &error.to_string())
            }
            Err(error) => return Err(format!("bad input: {error}").into()),
        };
        output.respond(response)
    })
}

/// As [`run`], for bodies that shall not be held in memory as a whole: `function` reads the request's body from
/// its [`Input`] and writes the answer's to its [`Output`].
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     kiln_fdk::run_streaming(|_, input, output| {
///         output.set_content_type("application/octet-stream")?;
///         std::io::copy(input, output)?;
///         Ok(())
///     })
/// }
/// ```
pub fn run_streaming(
    function: impl FnMut(&Context, &mut Input<'_>, &mut Output<'_>) -> Result<()> + Send + 'static,
) -> ExitCode {
    match serve::run(function) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("kiln-fdk: {error}");
            ExitCode::FAILURE
        }
    }
}
