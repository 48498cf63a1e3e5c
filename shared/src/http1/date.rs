//! The `Date` header (RFC 9110, 6.6.1), formatted once a second per thread.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

struct Cached {
    second: u64,
    line: Vec<u8>,
}

thread_local! {
    static CACHED: RefCell<Cached> = const { RefCell::new(Cached { second: u64::MAX, line: Vec::new() }) };
}

/// Adds a `Date` line with the current time.
pub(super) fn push_date(out: &mut Vec<u8>) {
    let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    CACHED.with_borrow_mut(|cached| {
        if cached.second != second {
            let time = Timestamp::from_second(second as i64).unwrap_or_default();
            cached.line = format!("Date: {}\r\n", time.strftime("%a, %d %b %Y %H:%M:%S GMT")).into_bytes();
            cached.second = second;
        }
        out.extend_from_slice(&cached.line);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_has_the_form_of_the_rfc() {
        let mut out = Vec::new();
        push_date(&mut out);
        let line = String::from_utf8(out).expect("ASCII");
        assert_eq!(line.len(), "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n".len(), "{line}");
        assert!(line.starts_with("Date: ") && line.ends_with(" GMT\r\n"), "{line}");
    }
}
