//! What a caller may ask for with a detached call, in header lines.

use std::time::Duration;

use kiln_shared::call::{Failure, FailureKind};
use kiln_shared::http1::HeaderBlock;
use kiln_shared::queue::{DELAY_MAX, KEY_BYTES_MAX, Priority};

/// Not to be started before this time has passed: seconds, or a number with `s`, `m`, `h` or `d`.
const DELAY_HEADER: &str = "Kiln-Delay";
/// Dead if not started within this time; written like a delay.
const START_WITHIN_HEADER: &str = "Kiln-Start-Within";
/// 0, 1 or 2; higher ones go first.
const PRIORITY_HEADER: &str = "Kiln-Priority";
/// A second call of the function with this key is not made: its caller gets the first one's id.
const KEY_HEADER: &str = "Idempotency-Key";

/// What a caller asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DetachedOptions {
    pub(super) delay: Duration,
    pub(super) start_within: Option<Duration>,
    pub(super) priority: Priority,
    pub(super) idempotency_key: Option<String>,
}

impl DetachedOptions {
    /// Reads a caller's header lines.
    ///
    /// # Errors
    /// 400 with the header's name.
    pub(super) fn read(headers: &HeaderBlock) -> Result<Self, Failure> {
        let priority =
            |text: &str| text.parse::<u8>().ok().and_then(|number| Priority::try_from(number).ok());
        let key = |text: &str| {
            let fits = !text.is_empty() && text.len() <= KEY_BYTES_MAX;
            (fits && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| text.to_owned())
        };
        Ok(Self {
            delay: read(headers, DELAY_HEADER, "0s to 366d, such as 30s, 5m or 2h", duration)?
                .unwrap_or_default(),
            start_within: read(headers, START_WITHIN_HEADER, "1s to 366d, such as 30s, 5m or 2h", |text| {
                duration(text).filter(|length| !length.is_zero())
            })?,
            priority: read(headers, PRIORITY_HEADER, "0, 1 or 2", priority)?.unwrap_or_default(),
            idempotency_key: read(headers, KEY_HEADER, "1 to 256 visible characters", key)?,
        })
    }
}

/// True for header lines that speak to the queue and not to the function.
pub(super) fn is_for_queue(name: &[u8]) -> bool {
    [DELAY_HEADER, START_WITHIN_HEADER, PRIORITY_HEADER]
        .iter()
        .any(|header| name.eq_ignore_ascii_case(header.as_bytes()))
}

/// Reads one header, if it is there.
fn read<T>(
    headers: &HeaderBlock,
    name: &str,
    wanted: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Failure> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    if let Some(read) = std::str::from_utf8(value).ok().and_then(parse) {
        return Ok(Some(read));
    }
    let message = format!("Invalid header {name}, it must be {wanted}");
    Err(Failure::new(FailureKind::BadRequest, 400, message))
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    let length = Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?);
    (length <= DELAY_MAX).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(lines: &[(&str, &str)]) -> Result<DetachedOptions, Failure> {
        let mut headers = HeaderBlock::new();
        for (name, value) in lines {
            headers.push(name.as_bytes(), value.as_bytes()).expect("valid");
        }
        DetachedOptions::read(&headers)
    }

    #[test]
    fn without_header_lines_a_call_is_due_at_once() {
        assert_eq!(asked(&[("Accept", "*/*")]), Ok(DetachedOptions::default()));
    }

    #[test]
    fn every_option_is_read() {
        let options = asked(&[
            ("kiln-delay", "5m"),
            ("Kiln-Start-Within", "90"),
            ("Kiln-Priority", "2"),
            ("Idempotency-Key", "order-7"),
        ]);
        let wanted = DetachedOptions {
            delay: Duration::from_mins(5),
            start_within: Some(Duration::from_secs(90)),
            priority: Priority::MAX,
            idempotency_key: Some("order-7".to_owned()),
        };
        assert_eq!(options, Ok(wanted));
    }

    #[test]
    fn a_bad_option_is_refused_by_its_name() {
        for (name, value) in [
            ("Kiln-Delay", "soon"),
            ("Kiln-Delay", "-1"),
            ("Kiln-Delay", "367d"),
            ("Kiln-Delay", "99999999999999999999"),
            ("Kiln-Delay", "1w"),
            ("Kiln-Start-Within", "0"),
            ("Kiln-Priority", "3"),
            ("Idempotency-Key", ""),
            ("Idempotency-Key", "a b"),
        ] {
            let refused = asked(&[(name, value)]).expect_err("refused");
            assert_eq!(refused.status, 400, "{name}: {value}");
            assert!(refused.message.starts_with(&format!("Invalid header {name}, it must be ")), "{refused}");
        }
    }
}
