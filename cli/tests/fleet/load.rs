//! Load by wrk, and what became of it.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fleet::Fleet;
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

/// Calls in flight per balancer.
pub(crate) const CONNECTIONS: usize = 8;
/// How long load runs before and after something breaks.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

/// Runs load on every balancer while `during` goes on; what each load came to.
pub(crate) async fn under_load(
    fleet: &mut Fleet,
    function: &str,
    during: impl AsyncFnOnce(&mut Fleet),
) -> Vec<Outcome> {
    let script = fleet.folder.path().join("post.lua");
    // Before any wrk reads it.
    std::fs::write(&script, SCRIPT).expect("a script");
    let loads: Vec<Load> = (0..fleet.balancers.len())
        .map(|balancer| {
            let url = fleet.url(balancer, &format!("/invoke/{function}"));
            Load::start(&fleet.clients[balancer], &script, &url)
        })
        .collect();
    tokio::time::sleep(SETTLE).await;
    during(fleet).await;
    tokio::time::sleep(SETTLE).await;
    loads.into_iter().map(Load::end).collect()
}

/// Prints what a scenario came to.
pub(crate) fn tell(what: &str, took: Duration, outcomes: &[Outcome]) {
    let requests: u64 = outcomes.iter().map(|outcome| outcome.requests).sum();
    let lost: u64 = outcomes.iter().map(|outcome| outcome.status_errors).sum();
    let p99: Vec<String> =
        outcomes.iter().map(|outcome| format!("{:.1} ms", outcome.p99_micros as f64 / 1000.0)).collect();
    println!("{what}: {took:.0?}; {requests} answers, {lost} of them errors, p99 {}", p99.join(" and "));
}

/// A running wrk; killed when it is dropped.
struct Load {
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
    /// No answer was wrong or late; connections may have broken, as those of a balancer that ends do.
    pub(crate) fn answers_are_clean(&self) -> bool {
        self.status_errors + self.timeouts == 0
    }

    /// Nothing went wrong.
    pub(crate) fn is_clean(&self) -> bool {
        let errors =
            self.status_errors + self.connect_errors + self.read_errors + self.write_errors + self.timeouts;
        errors == 0
    }
}

impl Load {
    /// Calls `url` from `host` over [`CONNECTIONS`] connections until [`Self::end`].
    fn start(host: &Host, script: &Path, url: &str) -> Self {
        let child = host
            .command("wrk")
            .args(["-t", "1", "-c", &CONNECTIONS.to_string(), "-d", &format!("{SECONDS_MAX}s")])
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
    fn end(mut self) -> Outcome {
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
