//! What a message looks like: RFC 5424 inside the frames of RFC 6587.
//!
//! Pure. Messages are written as octet-counted frames (RFC 6587, 3.4.1), one after the other: what streams carry as it
//! is, and what datagrams are cut from again. No byte order mark stands before the text, which makes it MSG-ANY (RFC
//! 5424, 6.4); it is UTF-8 all the same, bytes that are not are replaced.

use std::fmt::Write as _;

use jiff::Timestamp;
use kiln_shared::http1::push_decimal;

/// Name of the structured data (RFC 5424, 7). 32473 is the enterprise number for examples (RFC 5612): Kiln has none.
const ELEMENT: &str = "kiln@32473";
/// Longest value of a parameter, in bytes as it is written.
const VALUE_BYTES_MAX: usize = 128;
/// Version of the protocol (RFC 5424, 6.2.2).
const VERSION: &str = "1";

/// Where a message comes from (RFC 5424, 6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Facility {
    /// What functions write; as Fn.
    User = 1,
    /// What Kiln itself says.
    Daemon = 3,
}

/// How grave it is (RFC 5424, 6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// The fields of a header, as they are meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header<'a> {
    pub(super) facility: Facility,
    pub(super) severity: Severity,
    pub(super) host: &'a str,
    pub(super) app: &'a str,
    pub(super) process: &'a str,
    pub(super) kind: &'a str,
    /// Parameters of the structured data; those with an empty value are left out.
    pub(super) data: &'a [(&'static str, &'a str)],
}

/// Everything of a message but its time, its number and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    before_time: String,
    /// From behind the time to inside the element's brackets.
    after_time: String,
}

impl Template {
    /// Writes the fields as the protocol has them: too long ones are cut, letters that may not be there replaced.
    pub(super) fn new(header: &Header<'_>) -> Self {
        let priority = header.facility as u8 * 8 + header.severity as u8;
        let before_time = format!("<{priority}>{VERSION} ");
        let mut after_time = String::with_capacity(512);
        // Lengths: RFC 5424, 6.
        for (text, bytes_max) in
            [(header.host, 255), (header.app, 48), (header.process, 128), (header.kind, 32)]
        {
            after_time.push(' ');
            push_word(text, bytes_max, &mut after_time);
        }
        after_time.push_str(" [");
        after_time.push_str(ELEMENT);
        for (name, value) in header.data.iter().filter(|(_, value)| !value.is_empty()) {
            write!(after_time, " {name}=\"").expect("a string takes everything");
            push_value(value, &mut after_time);
            after_time.push('"');
        }
        Self { before_time, after_time }
    }

    /// The message up to its number, for messages of this time.
    pub(super) fn at(&self, time: Timestamp) -> String {
        let Self { before_time, after_time } = self;
        format!("{before_time}{time:.6}{after_time}")
    }

    /// Bytes of a message beside its text, at most.
    pub(super) fn overhead_bytes(&self) -> usize {
        // The time, ` line="" part="" parts=""] ` and three numbers.
        const REST: usize = 27 + 28 + 3 * 20;
        self.before_time.len() + self.after_time.len() + REST
    }
}

/// Which line of a call a message is, and which piece of a line that was too long for one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1.
    pub(super) line: u64,
    /// From 1; 0 if the line is in one message.
    pub(super) part: u64,
    /// This is the last part.
    pub(super) last: bool,
}

impl Place {
    /// Pushes the number as parameters of the element.
    fn push(self, out: &mut Vec<u8>) {
        let Self { line, part, last } = self;
        let parameters = [(" line=\"", Some(line)), (" part=\"", (part > 0).then_some(part))];
        let parts = (" parts=\"", (part > 0 && last).then_some(part));
        for (name, number) in parameters.into_iter().chain([parts]) {
            if let Some(number) = number {
                out.extend_from_slice(name.as_bytes());
                push_decimal(number, out);
                out.push(b'"');
            }
        }
    }

    /// Length of what [`Self::push`] pushes.
    fn bytes(self) -> usize {
        let digits = |number: u64| number.checked_ilog10().unwrap_or(0) as usize + 1;
        let part = if self.part == 0 { 0 } else { 8 + digits(self.part) };
        let parts = if self.part > 0 && self.last { 9 + digits(self.part) } else { 0 };
        8 + digits(self.line) + part + parts
    }
}

/// Writes a message as a frame. `prefix` is that of [`Template::at`].
pub(super) fn push_frame(prefix: &str, place: Option<Place>, text: &str, out: &mut Vec<u8>) {
    const END: &[u8] = b"] ";
    let place_bytes = place.map_or(0, Place::bytes);
    push_decimal((prefix.len() + place_bytes + END.len() + text.len()) as u64, out);
    out.push(b' ');
    out.extend_from_slice(prefix.as_bytes());
    if let Some(place) = place {
        place.push(out);
    }
    out.extend_from_slice(END);
    out.extend_from_slice(text.as_bytes());
}

/// The first message in `frames`, and what follows it. None at the end, and where no frame is.
pub(super) fn split_frame(frames: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = frames.iter().take(20).position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&frames[..space]).ok()?.parse().ok()?;
    let rest = &frames[space + 1..];
    (length <= rest.len()).then(|| rest.split_at(length))
}

/// Where `text` may be cut without breaking a letter, at most at `bytes_max`, which is 4 or more.
pub(super) fn letter_boundary(text: &[u8], bytes_max: usize) -> usize {
    if text.len() <= bytes_max {
        return text.len();
    }
    // A letter has at most three continuation bytes; what has more is none.
    let back = (0..=3).find(|back| bytes_max > *back && text[bytes_max - back] & 0b1100_0000 != 0b1000_0000);
    bytes_max - back.unwrap_or(0)
}

/// Pushes a field of the header: printable ASCII without spaces, `-` if nothing is left.
fn push_word(text: &str, bytes_max: usize, out: &mut String) {
    let start = out.len();
    let printable = |letter: char| if letter.is_ascii_graphic() { letter } else { '_' };
    out.extend(text.chars().take(bytes_max).map(printable));
    if out.len() == start {
        out.push('-');
    }
}

/// Pushes a parameter's value: `"`, `\` and `]` are escaped (RFC 5424, 6.3.3).
fn push_value(text: &str, out: &mut String) {
    let start = out.len();
    for letter in text.chars() {
        if out.len() - start + letter.len_utf8() + 1 > VALUE_BYTES_MAX {
            break;
        }
        if matches!(letter, '"' | '\\' | ']') {
            out.push('\\');
        }
        out.push(if letter.is_control() { '_' } else { letter });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header<'a>(data: &'a [(&'static str, &'a str)]) -> Header<'a> {
        Header {
            facility: Facility::User,
            severity: Severity::Info,
            host: "node 1",
            app: "äpp",
            process: "",
            kind: "fn",
            data,
        }
    }

    #[test]
    fn a_message_is_as_rfc_5424_has_it() {
        let template = Template::new(&header(&[("app", r#"a"]\b"#), ("call", ""), ("node", "n")]));
        let time = "2026-11-24T01:02:03.4Z".parse().expect("a time");
        let mut frames = Vec::new();
        push_frame(&template.at(time), Some(Place { line: 7, part: 0, last: true }), "hello", &mut frames);
        push_frame(&template.at(time), Some(Place { line: 8, part: 2, last: true }), "", &mut frames);
        let (first, rest) = split_frame(&frames).expect("a frame");
        assert_eq!(
            String::from_utf8_lossy(first),
            r#"<14>1 2026-11-24T01:02:03.400000Z node_1 _pp - fn [kiln@32473 app="a\"\]\\b" node="n" line="7"] hello"#
        );
        let (second, rest) = split_frame(rest).expect("a frame");
        assert!(second.ends_with(br#" node="n" line="8" part="2" parts="2"] "#));
        assert!(rest.is_empty() && split_frame(rest).is_none());
    }

    #[test]
    fn what_is_no_frame_is_not_read() {
        for bytes in [&b"5 abc"[..], b"x abc", b"123456789012345678901 x", b"-1 x", b"7", b""] {
            assert!(split_frame(bytes).is_none(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn frames_read_as_they_were_written(texts in prop::collection::vec(".{0,40}", 0..20)) {
            let prefix = Template::new(&header(&[])).at(Timestamp::UNIX_EPOCH);
            let mut frames = Vec::new();
            for (line, text) in texts.iter().enumerate() {
                push_frame(&prefix, Some(Place { line: line as u64, part: 0, last: true }), text, &mut frames);
            }
            let mut rest = &frames[..];
            for (line, text) in texts.iter().enumerate() {
                let (message, next) = split_frame(rest).expect("a frame");
                let expected = format!("{prefix} line=\"{line}\"] {text}");
                prop_assert_eq!(std::str::from_utf8(message).expect("UTF-8"), expected);
                rest = next;
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn a_header_keeps_its_bounds_whatever_the_names(host in ".{0,300}", name in ".{0,300}") {
            let data = [("app", &*name), ("function", &*name)];
            let template = Template::new(&Header { host: &host, app: &name, kind: &name, ..header(&data) });
            let text = template.at(Timestamp::UNIX_EPOCH);
            let mut words = text.splitn(7, ' ').skip(2);
            for bytes_max in [255, 48, 128, 32] {
                let word = words.next().expect("a word");
                prop_assert!((1..=bytes_max).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_graphic()));
            }
            let data = words.next().expect("structured data");
            prop_assert!(data.len() < ELEMENT.len() + 2 * (VALUE_BYTES_MAX + 15), "{}", data);
            prop_assert!(!data.chars().any(char::is_control));
        }

        #[test]
        fn no_letter_is_cut(text in "\\PC{0,40}", bytes_max in 4_usize..60) {
            let end = letter_boundary(text.as_bytes(), bytes_max);
            prop_assert!(text.is_char_boundary(end) && end <= bytes_max.max(text.len()));
            prop_assert!(end + 3 >= bytes_max.min(text.len()));
        }

        #[test]
        fn any_bytes_can_be_cut(bytes in prop::collection::vec(any::<u8>(), 0..60), bytes_max in 4_usize..60) {
            let end = letter_boundary(&bytes, bytes_max);
            prop_assert!(end <= bytes_max && (end > 0 || bytes.is_empty()));
        }
    }
}
