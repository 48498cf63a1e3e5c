//! A container's output as messages: cut into lines, told apart by call, handed to each of the app's sinks.

use std::sync::Arc;

use jiff::Timestamp;
use kiln_shared::function::FunctionSpec;
use kiln_shared::ids::CallId;
use memchr::memchr;

use super::message::{Facility, Header, Place, Severity, Template, letter_boundary, push_frame};
use super::queue::Queue;

/// Frames are handed over when they are as many bytes.
const HAND_OVER_BYTES: usize = 64 * 1024;

/// What messages of a node have in common.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) host: String,
    pub(super) node: String,
}

/// The way of one container's output to the sinks of its app. Never waits.
#[derive(Debug)]
pub(crate) struct Tap {
    origin: Arc<Origin>,
    spec: Names,
    queues: Vec<Arc<Queue>>,
    message_bytes_max: usize,
    template: Template,
    text_bytes_max: usize,
    /// The beginning of a line that has not ended, at most `text_bytes_max` bytes.
    beginning: Vec<u8>,
    place: Place,
    frames: Vec<u8>,
    messages: u64,
}

/// Of the function.
#[derive(Debug)]
struct Names {
    app: String,
    app_id: String,
    function: String,
    function_id: String,
}

impl Tap {
    pub(super) fn new(
        origin: Arc<Origin>,
        spec: &FunctionSpec,
        queues: Vec<Arc<Queue>>,
        message_bytes_max: usize,
    ) -> Self {
        let spec = Names {
            app: spec.app_name.clone(),
            app_id: spec.app_id.to_string(),
            function: spec.name.clone(),
            function_id: spec.id.to_string(),
        };
        let template = template(&origin, &spec, "");
        let text_bytes_max = text_bytes_max(message_bytes_max, &template);
        Self {
            origin,
            spec,
            queues,
            message_bytes_max,
            template,
            text_bytes_max,
            beginning: Vec::new(),
            place: Place { line: 1, part: 0, last: true },
            frames: Vec::new(),
            messages: 0,
        }
    }

    /// From now on output belongs to `call`. A line that has not ended ends here.
    pub(crate) fn begin(&mut self, call: CallId) {
        self.end_line();
        self.template = template(&self.origin, &self.spec, &call.to_string());
        self.text_bytes_max = text_bytes_max(self.message_bytes_max, &self.template);
        self.place.line = 1;
    }

    /// True if a line has begun and not ended.
    pub(crate) fn is_within_line(&self) -> bool {
        !self.beginning.is_empty()
    }

    /// Takes output.
    pub(crate) fn write(&mut self, output: &[u8]) {
        let prefix = self.template.at(Timestamp::now());
        let mut rest = output;
        while let Some(end) = memchr(b'\n', rest) {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if self.beginning.is_empty() {
                self.line(&prefix, line);
            } else {
                let mut whole = std::mem::take(&mut self.beginning);
                whole.extend_from_slice(line);
                self.line(&prefix, &whole);
            }
        }
        self.beginning.extend_from_slice(rest);
        if self.beginning.len() > self.text_bytes_max {
            let long = std::mem::take(&mut self.beginning);
            let mut rest = &long[..];
            while rest.len() > self.text_bytes_max {
                let (part, next) = rest.split_at(letter_boundary(rest, self.text_bytes_max));
                self.parts(&prefix, &String::from_utf8_lossy(part), false);
                rest = next;
            }
            self.beginning = rest.to_vec();
        }
        self.hand_over();
    }

    /// Ends a line that has begun, as if it were whole.
    pub(crate) fn end_line(&mut self) {
        if !self.beginning.is_empty() {
            let line = std::mem::take(&mut self.beginning);
            self.line(&self.template.at(Timestamp::now()), &line);
            self.hand_over();
        }
    }

    fn line(&mut self, prefix: &str, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = String::from_utf8_lossy(line);
        if text.len() <= self.text_bytes_max && self.place.part == 0 {
            self.frame(prefix, &text);
        } else {
            self.parts(prefix, &text, true);
            self.place.part = 0;
        }
        self.place.line += 1;
    }

    /// Messages of a line too long for one.
    fn parts(&mut self, prefix: &str, text: &str, last: bool) {
        let mut rest = text;
        loop {
            let (part, next) = rest.split_at(letter_boundary(rest.as_bytes(), self.text_bytes_max));
            self.place.part += 1;
            self.place.last = last && next.is_empty();
            self.frame(prefix, part);
            rest = next;
            if rest.is_empty() {
                break;
            }
        }
    }

    fn frame(&mut self, prefix: &str, text: &str) {
        push_frame(prefix, Some(self.place), text, &mut self.frames);
        self.messages += 1;
        if self.frames.len() >= HAND_OVER_BYTES {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        if self.messages > 0 {
            for queue in &self.queues {
                queue.push(&self.frames, self.messages);
            }
            self.frames.clear();
            self.messages = 0;
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.end_line();
    }
}

/// Room for text, at least one letter.
fn text_bytes_max(message_bytes_max: usize, template: &Template) -> usize {
    message_bytes_max.saturating_sub(template.overhead_bytes()).max(4)
}

fn template(origin: &Origin, names: &Names, call: &str) -> Template {
    Template::new(&Header {
        facility: Facility::User,
        severity: Severity::Info,
        host: &origin.host,
        app: &names.app,
        process: call,
        kind: &names.function,
        data: &[
            ("app", &names.app),
            ("function", &names.function),
            ("app_id", &names.app_id),
            ("fn_id", &names.function_id),
            ("call", call),
            ("node", &origin.node),
        ],
    })
}

#[cfg(test)]
mod tests {
    use kiln_shared::ids::{AppId, FunctionId};
    use proptest::prelude::*;

    use super::super::message::split_frame;
    use super::*;

    fn tap(message_bytes_max: usize) -> (Tap, Arc<Queue>) {
        let origin = Arc::new(Origin { host: "h".into(), node: "n".into() });
        let spec = FunctionSpec::with_defaults(FunctionId::generate(), AppId::generate(), "i");
        let queue = Arc::new(Queue::new(1 << 30));
        (Tap::new(origin, &spec, vec![Arc::clone(&queue)], message_bytes_max), queue)
    }

    /// The messages' numbers (line, part, parts) and texts.
    fn messages(queue: &Queue) -> Vec<(String, String)> {
        let mut found = Vec::new();
        while let Some(piece) = queue.pop() {
            let mut rest = &piece.bytes[..];
            while let Some((message, next)) = split_frame(rest) {
                let message = String::from_utf8(message.to_vec()).expect("UTF-8");
                let (_, numbered) = message.split_once(" line=\"").expect("a number");
                let (numbers, text) = numbered.split_once("\"] ").expect("an end");
                found.push((numbers.to_owned(), text.to_owned()));
                rest = next;
            }
            assert!(rest.is_empty());
        }
        found
    }

    fn pairs(found: &[(&str, &str)]) -> Vec<(String, String)> {
        found.iter().map(|(numbers, text)| ((*numbers).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn each_line_is_a_message_however_it_comes() {
        let (mut tap, queue) = tap(4096);
        tap.write(b"ready\n");
        tap.begin(CallId::generate());
        tap.write(b"one\r\n\ntwo\n");
        assert!(!tap.is_within_line());
        for piece in [&b"th"[..], b"re", b"e\nfour \xff"] {
            tap.write(piece);
            assert!(tap.is_within_line());
        }
        tap.begin(CallId::generate());
        tap.write(b"last");
        drop(tap);
        let expected =
            [("1", "ready"), ("1", "one"), ("2", ""), ("3", "two"), ("4", "three"), ("5", "four \u{fffd}")];
        let found = messages(&queue);
        assert_eq!(found[..6], pairs(&expected));
        assert_eq!(found[6..], pairs(&[("1", "last")]));
    }

    #[test]
    fn a_line_that_is_too_long_comes_in_marked_parts() {
        let (mut tap, queue) = tap(2048);
        let long = "x".repeat(2 * tap.text_bytes_max);
        tap.write(format!("{long}y\nz\n").as_bytes());
        let found = messages(&queue);
        let numbers: Vec<_> = found.iter().map(|(numbers, _)| numbers.replace('"', "")).collect();
        assert_eq!(numbers, ["1 part=1", "1 part=2", "1 part=3 parts=3", "2"]);
        assert_eq!(found[..3].iter().map(|(_, text)| &**text).collect::<String>(), format!("{long}y"));
    }

    proptest! {
        #[test]
        fn no_byte_of_a_text_is_lost_and_no_message_is_too_long(
            text in "[a-zé\n]{0,2000}", cuts in prop::collection::vec(1_usize..900, 0..9), bytes_max in 700_usize..900,
        ) {
            let (mut tap, queue) = tap(bytes_max);
            tap.begin(CallId::generate());
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                tap.write(now);
                rest = later;
            }
            tap.write(rest);
            tap.end_line();
            let mut written = String::new();
            while let Some(piece) = queue.pop() {
                let mut rest = &piece.bytes[..];
                while let Some((message, next)) = split_frame(rest) {
                    prop_assert!(message.len() <= bytes_max);
                    let message = std::str::from_utf8(message).expect("UTF-8");
                    let (head, text) = message.split_once("\"] ").expect("an end");
                    written.push_str(text);
                    if !head.contains(" part=") || head.contains(" parts=") {
                        written.push('\n');
                    }
                    rest = next;
                }
            }
            let expected = if text.is_empty() || text.ends_with('\n') { text } else { text + "\n" };
            prop_assert_eq!(written, expected);
        }
    }
}
