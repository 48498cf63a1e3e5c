//! Numbers and times as the contract writes them, without allocation.

use jiff::Timestamp;
use jiff::tz::Offset;

pub(super) use crate::http1::push_decimal;

/// Appends the time in RFC 3339 with whole seconds in UTC, rounded down: `2018-09-30T12:00:30Z`.
pub(crate) fn push_seconds(time: Timestamp, out: &mut Vec<u8>) {
    push_up_to_seconds(time, out);
    out.push(b'Z');
}

/// Appends the time in RFC 3339 with milliseconds in UTC, rounded down: `2018-02-01T12:00:30.123Z`.
pub(crate) fn push_millis(time: Timestamp, out: &mut Vec<u8>) {
    push_up_to_seconds(time, out);
    out.push(b'.');
    // Before 1970 the fraction is negative; `to_datetime` has borrowed a second for it.
    push_padded(3, Offset::UTC.to_datetime(time).subsec_nanosecond().unsigned_abs() / 1_000_000, out);
    out.push(b'Z');
}

fn push_up_to_seconds(time: Timestamp, out: &mut Vec<u8>) {
    let time = Offset::UTC.to_datetime(time);
    push_padded(4, u32::from(time.year().unsigned_abs()), out);
    for (separator, part) in [
        (b'-', time.month()),
        (b'-', time.day()),
        (b'T', time.hour()),
        (b':', time.minute()),
        (b':', time.second()),
    ] {
        out.push(separator);
        push_padded(2, u32::from(part.unsigned_abs()), out);
    }
}

fn push_padded(width: u32, number: u32, out: &mut Vec<u8>) {
    for place in (0..width).rev() {
        out.push(b'0' + (number / 10u32.pow(place) % 10) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn times_are_utc_and_rounded_down() {
        let time: Timestamp = "2018-09-30T14:00:05.9999+02:00".parse().expect("a time");
        assert_eq!(text(|out| push_seconds(time, out)), "2018-09-30T12:00:05Z");
        assert_eq!(text(|out| push_millis(time, out)), "2018-09-30T12:00:05.999Z");
    }

    proptest::proptest! {
        #[test]
        fn written_times_read_back(millis in 0i64..4_102_444_800_000) {
            let time = Timestamp::from_millisecond(millis).expect("in range");
            proptest::prop_assert_eq!(text(|out| push_millis(time, out)).parse::<Timestamp>().expect("valid"), time);
            let seconds = text(|out| push_seconds(time, out)).parse::<Timestamp>().expect("valid");
            proptest::prop_assert_eq!(seconds.as_second(), time.as_second());
        }
    }
}
