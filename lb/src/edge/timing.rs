//! The header `Server-Timing` (W3C Server Timing): where a call's time went, for whoever made it.
//!
//! Off unless configured: it tells callers how busy the fleet is. What a function says under that name passes; Kiln's own line is
//! the last one.

use std::io::Write as _;
use std::time::Duration;

use kiln_shared::call::Stages;
use kiln_shared::http1::HeaderBlock;

/// Whether callers are told where their calls' time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerTiming {
    /// They are not.
    Hidden,
    /// By the header `Server-Timing`.
    Shown,
}

/// Adds the line of a call that waited so long at the balancer and took so long until now. `stages` are its node's, if it has
/// been on one.
pub(super) fn push(headers: &mut HeaderBlock, waited: Duration, stages: Option<Stages>, total: Duration) {
    let mut line = Vec::with_capacity(128);
    push_time(&mut line, "wait", waited);
    if let Some(Stages { cold, wait, start, run }) = stages {
        push_time(&mut line, "queue", wait.saturating_sub(start));
        push_time(&mut line, "start", start);
        push_time(&mut line, "run", run);
        line.extend_from_slice(if cold { b"cold, " } else { b"" });
    }
    push_time(&mut line, "total", total);
    line.truncate(line.len() - b", ".len());
    headers.push_valid(b"Server-Timing", &line);
}

/// In milliseconds, as the specification has it.
fn push_time(line: &mut Vec<u8>, name: &str, time: Duration) {
    let micros = time.as_micros();
    write!(line, "{name};dur={}.{:03}, ", micros / 1000, micros % 1000)
        .expect("a buffer takes what is written");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stages: Option<Stages>) -> String {
        let mut headers = HeaderBlock::new();
        push(&mut headers, Duration::from_micros(1), stages, Duration::from_millis(2500));
        String::from_utf8(headers.get("Server-Timing").expect("it is there").to_vec()).expect("text")
    }

    #[test]
    fn each_stage_is_told_in_milliseconds() {
        let [wait, start, run] = [200_010, 199_000, 12_345].map(Duration::from_micros);
        assert_eq!(
            line(Some(Stages { cold: true, wait, start, run })),
            "wait;dur=0.001, queue;dur=1.010, start;dur=199.000, run;dur=12.345, cold, total;dur=2500.000"
        );
        assert_eq!(
            line(Some(Stages::default())),
            "wait;dur=0.001, queue;dur=0.000, start;dur=0.000, run;dur=0.000, total;dur=2500.000"
        );
        assert_eq!(line(None), "wait;dur=0.001, total;dur=2500.000");
    }
}
