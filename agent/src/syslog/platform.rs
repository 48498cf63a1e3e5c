//! Kiln's own log on its way to syslog, apart from what functions write by its facility.

use std::sync::Arc;

use jiff::Timestamp;
use kiln_shared::telemetry::{LogLine, TelemetryError, relay_logs};
use tracing::Level;

use super::lines::Origin;
use super::message::{Facility, Header, Severity, Template, letter_boundary, push_frame};
use super::queue::Queue;

/// Longest text of a message, in bytes: with its header it fits into a datagram.
const TEXT_BYTES_MAX: usize = 1024;

/// Sends what the process logs from now on to these sinks. Never waits.
///
/// # Errors
/// The log is relayed already.
pub(super) fn relay(origin: &Arc<Origin>, queues: Vec<Arc<Queue>>) -> Result<(), TelemetryError> {
    let origin = Arc::clone(origin);
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(|path| path.file_name()?.to_str()).unwrap_or("kiln").to_owned();
    let process = std::process::id().to_string();
    relay_logs(move |line| {
        let frame = frame(&origin, &program, &process, line);
        for queue in &queues {
            queue.push(&frame, 1);
        }
    })
}

fn frame(origin: &Origin, program: &str, process: &str, line: &LogLine<'_>) -> Vec<u8> {
    let severity = match *line.level {
        Level::ERROR => Severity::Error,
        Level::WARN => Severity::Warning,
        _ => Severity::Info,
    };
    let template = Template::new(&Header {
        facility: Facility::Daemon,
        severity,
        host: &origin.host,
        app: program,
        process,
        kind: line.target,
        data: &[("node", &origin.node)],
    });
    let text = &line.text[..letter_boundary(line.text.as_bytes(), TEXT_BYTES_MAX)];
    let mut frame = Vec::with_capacity(text.len() + 256);
    push_frame(&template.at(Timestamp::now()), None, text, &mut frame);
    frame
}

#[cfg(test)]
mod tests {
    use super::super::message::split_frame;
    use super::*;

    #[test]
    fn kilns_own_lines_have_a_facility_of_their_own_and_their_level() {
        let origin = Origin { host: "h".into(), node: "n1".into() };
        for (level, priority) in [(Level::ERROR, 27), (Level::WARN, 28), (Level::INFO, 30)] {
            let line = LogLine { level: &level, target: "kiln_agent::syslog", text: "words a=1" };
            let frame = frame(&origin, "kiln-agent", "7", &line);
            let (message, rest) = split_frame(&frame).expect("a frame");
            let message = String::from_utf8_lossy(message);
            assert!(message.starts_with(&format!("<{priority}>1 ")), "{message}");
            let end = " h kiln-agent 7 kiln_agent::syslog [kiln@32473 node=\"n1\"] words a=1";
            assert!(message.ends_with(end) && rest.is_empty(), "{message}");
        }
    }
}
