//! `kiln stop`: tells the Kiln of a data folder to end and waits until it did.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::daemon;
use crate::failure::Failure;
use crate::output::Output;
use crate::start::data_folder;

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// `kiln stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Data folder of the Kiln to stop [default: ~/.kiln/data]
    #[arg(long, env = "KILN_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Seconds to wait for calls to finish before giving up
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

/// Stops it. Calls that run are finished first, by the server's own rules.
pub fn run(output: Output, args: &StopArgs) -> Result<()> {
    let folder = data_folder(args.data_dir.as_deref())?;
    let Some(pid) = daemon::running(&folder)? else {
        return output.result(
            format_args!("No Kiln runs with the data folder {}", folder.display()),
            &json!({ "stopped": false }),
        );
    };
    let step = output.step(format!("Waiting for pid {pid} to finish its calls"));
    match kill(pid, Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(Errno::EPERM) => {
            return Err(Failure::new(format!("may not stop pid {pid}: it belongs to another user"))
                .hint("run `kiln stop` as the user that started it")
                .into());
        }
        Err(errno) => return Err(errno).context(format!("cannot stop pid {pid}")),
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    while daemon::running(&folder)? == Some(pid) {
        if Instant::now() > deadline {
            return Err(Failure::new(format!("pid {pid} still finishes its calls after {} s", args.timeout))
                .hint(format!("wait longer with --timeout, or end it at once with `kill -9 {pid}`"))
                .into());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    drop(step);
    output.result(format_args!("Stopped Kiln (pid {pid})"), &json!({ "stopped": true, "pid": pid.as_raw() }))
}
