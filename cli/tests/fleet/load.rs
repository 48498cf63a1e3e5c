//! Load by wrk, and what became of it.

use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::Host;

/// Posts, and ends with one line that programs can read.
const SCRIPT: &str = r#"
wrk.method = "POST"
wrk.body = "Kiln"
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("OUTCOME %d %d %d %d %d %d %d %d\n", summary.requests, e.status, e.connect, e.read, e.write,
    e.timeout, latency:percentile(50), latency:percentile(99)))
end
"#;

/// Longer than any scenario.
const SECONDS_MAX: u32 = 600;

/// A running wrk; killed when it is dropped.
pub(crate) struct Load {
    child: Child,
}

/// What a load came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Answers.
    pub(crate) requests: u64,
    /// Answers that were no 2xx.
    pub(crate) status_errors: u64,
    /// Connections that could not be made.
    pub(crate) connect_errors: u64,
    /// Connections that broke while an answer was due, or before.
    pub(crate) read_errors: u64,
    /// Requests that could not be sent.
    pub(crate) write_errors: u64,
    /// Answers that did not come in time.
    pub(crate) timeouts: u64,
    /// Median latency in microseconds.
    pub(crate) p50_micros: u64,
    /// 99th percentile in microseconds.
    pub(crate) p99_micros: u64,
}

impl Outcome {
    /// Nothing went wrong.
    pub(crate) fn is_clean(&self) -> bool {
        let errors =
            self.status_errors + self.connect_errors + self.read_errors + self.write_errors + self.timeouts;
        errors == 0
    }
}

impl Load {
    /// Calls `url` from `host` over so many connections until [`Self::end`].
    pub(crate) fn start(host: &Host, folder: &Path, url: &str, connections: usize) -> Self {
        let script = folder.join("post.lua");
        std::fs::write(&script, SCRIPT).expect("a script");
        let child = host
            .command("wrk")
            .args(["-t", "1", "-c", &connections.to_string(), "-d", &format!("{SECONDS_MAX}s")])
            .args(["--timeout", "60s", "-s"])
            .arg(script)
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("wrk runs");
        Self { child }
    }

    /// Ends it and says what it came to.
    pub(crate) fn end(mut self) -> Outcome {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).expect("wrk lives");
        let mut text = String::new();
        let mut out = self.child.stdout.take().expect("is piped");
        std::io::Read::read_to_string(&mut out, &mut text).expect("wrk speaks");
        self.child.wait().expect("wrk ends");
        let line = text.lines().find_map(|line| line.strip_prefix("OUTCOME "));
        let line = line.unwrap_or_else(|| panic!("wrk said:\n{text}"));
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
        let [
            requests,
            status_errors,
            connect_errors,
            read_errors,
            write_errors,
            timeouts,
            p50_micros,
            p99_micros,
        ] = numbers.try_into().expect("eight numbers");
        Outcome {
            requests,
            status_errors,
            connect_errors,
            read_errors,
            write_errors,
            timeouts,
            p50_micros,
            p99_micros,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It has ended, unless a test failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
