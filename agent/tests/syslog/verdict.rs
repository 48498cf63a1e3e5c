//! Whether every line of every call arrived, in order.

use std::collections::HashMap;
use std::time::Duration;

use kiln_testkit::rsyslog::{Message, Server};
use tokio::time::{Instant, sleep};

use crate::node::text_of;

/// Longest wait for messages on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_mins(1);

/// What was written: calls and how many lines each wrote.
pub(crate) type Written = Vec<(String, u64)>;

/// How often each message came beyond once.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) messages: u64,
    pub(crate) duplicates: u64,
    /// Calls and how many of their lines came, in order.
    lines: HashMap<String, u64>,
}

/// A parameter of a message's structured data.
pub(crate) fn parameter<'a>(message: &'a Message, name: &str) -> &'a str {
    let data = message["data"].as_str().expect("a text");
    let (_, value) = data.split_once(&format!(" {name}=\"")).unwrap_or_else(|| panic!("no {name} in {data}"));
    value.split('"').next().expect("a value")
}

/// Looks at messages in the order in which they came. Each line must come first after the one before it, and be what the
/// function wrote.
pub(crate) fn arrived<'a>(messages: impl Iterator<Item = &'a Message>) -> Arrived {
    let mut arrived = Arrived::default();
    for message in messages {
        arrived.messages += 1;
        let (call, line) = (parameter(message, "call"), parameter(message, "line"));
        let line: u64 = line.parse().expect("a number");
        assert_eq!(message["text"], text_of(line), "call {call}");
        let came = arrived.lines.entry(call.to_owned()).or_default();
        if line <= *came {
            arrived.duplicates += 1;
        } else {
            assert_eq!(line, *came + 1, "call {call} lacks a line, or it comes late");
            *came = line;
        }
    }
    arrived
}

impl Arrived {
    /// The first call that lacks lines, if any does.
    pub(crate) fn lacks(&self, written: &Written) -> Option<String> {
        written.iter().find_map(|(call, lines)| {
            let came = self.lines.get(call).copied().unwrap_or(0);
            (came != *lines).then(|| format!("call {call} wrote {lines} lines, {came} came"))
        })
    }
}

/// Waits until all of it has arrived by one of a server's inputs.
pub(crate) async fn all_arrive(server: &Server, input: &str, written: &Written) -> Arrived {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let messages = server.messages();
        let arrived = arrived(messages.iter().filter(|message| message["input"] == input));
        match arrived.lacks(written) {
            None => return arrived,
            Some(lack) => assert!(Instant::now() < deadline, "{lack}; {} messages came", arrived.messages),
        }
        sleep(Duration::from_millis(50)).await;
    }
}
