//! Times as Fn writes them: RFC 3339.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Parses `2018-09-30T12:00:30Z`, with any fraction and any offset. `None` for other texts and times before 1970.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !separators.iter().all(|&(at, separator)| text.as_bytes().get(at) == Some(&separator)) {
        return None;
    }
    let days = days_since_1970(number(0..4)?, number(5..7)?, number(8..10)?)?;
    let seconds = days * 86_400 + number(11..13)? * 3_600 + number(14..16)? * 60 + number(17..19)?;

    let rest = text.get(19..)?;
    let fraction = rest
        .strip_prefix('.')
        .map_or("", |digits| &digits[..digits.bytes().take_while(u8::is_ascii_digit).count()]);
    let nanos = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    let offset = if fraction.is_empty() { rest } else { &rest[fraction.len() + 1..] };
    let time = UNIX_EPOCH + Duration::new(seconds, nanos);
    if offset == "Z" {
        return Some(time);
    }
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let shift = Duration::from_secs(
        u64::from(hours.parse::<u16>().ok()?) * 3_600 + u64::from(minutes.parse::<u16>().ok()?) * 60,
    );
    match offset.as_bytes()[0] {
        b'+' => time.checked_sub(shift),
        b'-' => time.checked_add(shift),
        _ => None,
    }
}

/// Days from 1 January 1970 in the Gregorian calendar (H. Hinnant, "chrono-compatible low-level date algorithms").
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let era = year / 400;
    let year_of_era = year % 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nanos(text: &str) -> Option<u128> {
        parse(text).map(|time| time.duration_since(UNIX_EPOCH).expect("after 1970").as_nanos())
    }

    #[test]
    fn times_with_any_fraction_and_offset_are_read() {
        assert_eq!(nanos("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(nanos("2018-09-30T12:00:30Z"), Some(1_538_308_830_000_000_000));
        assert_eq!(nanos("2018-09-30T14:00:30+02:00"), Some(1_538_308_830_000_000_000));
        assert_eq!(nanos("2018-09-30T08:30:30.5-03:30"), Some(1_538_308_830_500_000_000));
        assert_eq!(nanos("2000-02-29T00:00:00.123456789123Z"), Some(951_782_400_123_456_789));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "tomorrow",
            "2018-09-30",
            "2018-09-30T12:00:30",
            "2018-13-30T12:00:30Z",
            "2018-09-30T12:00:3éZ",
            "1969-12-31T23:59:59Z",
            "2018-09-30T12:00:30.Z",
            "2018-09-30T12:00:30+0200",
            "+018-09-30T12:00:30Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
