//! What a request's path asks for.
//!
//! Knows the shape of call paths and nothing of what exists. Paths are matched after decoding, as Fn does
//! (`spec/api-v2.md`, part 5): `%2F` is a slash.

use std::borrow::Cow;

use super::RouteError;

/// What a decoded path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// `/invoke/{id}`.
    Invoke {
        /// The function's id as given; may be no id at all.
        function: &'a [u8],
    },
    /// `/t/{app}` or `/t/{app}/{rest}`.
    Trigger {
        /// The app's name as given.
        app: &'a [u8],
        /// The rest with its leading slash, `/` if there is none.
        source: &'a [u8],
    },
    /// No call.
    Other,
}

/// Removes percent escapes from a path without its query. Copies only if there are any.
///
/// # Errors
/// [`RouteError::BadEscape`] if a `%` is not followed by two hexadecimal digits (RFC 3986, 2.1).
pub fn decode(path: &[u8]) -> Result<Cow<'_, [u8]>, RouteError> {
    let Some(first) = path.iter().position(|&byte| byte == b'%') else {
        return Ok(Cow::Borrowed(path));
    };
    let (plain, mut rest) = path.split_at(first);
    let mut decoded = Vec::with_capacity(path.len());
    decoded.extend_from_slice(plain);
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = if byte == b'%' { unescape(after)? } else { (byte, after) };
        decoded.push(byte);
        rest = after;
    }
    Ok(Cow::Owned(decoded))
}

fn unescape(after_percent: &[u8]) -> Result<(u8, &[u8]), RouteError> {
    let (&[high, low], rest) = after_percent.split_first_chunk().ok_or(RouteError::BadEscape)?;
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(RouteError::BadEscape);
    Ok(((digit(high)? << 4 | digit(low)?) as u8, rest))
}

/// Tells calls from everything else. Allocates nothing; O(length).
pub fn classify(decoded_path: &[u8]) -> Target<'_> {
    if let Some(function) = decoded_path.strip_prefix(b"/invoke/") {
        return if function.is_empty() || function.contains(&b'/') {
            Target::Other
        } else {
            Target::Invoke { function }
        };
    }
    let Some(rest) = decoded_path.strip_prefix(b"/t/") else { return Target::Other };
    let app_len = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    let (app, source) = rest.split_at(app_len);
    if app.is_empty() {
        return Target::Other;
    }
    Target::Trigger { app, source: if source.is_empty() { b"/" } else { source } }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trigger<'a>(app: &'a str, source: &'a str) -> Target<'a> {
        Target::Trigger { app: app.as_bytes(), source: source.as_bytes() }
    }

    #[test]
    fn call_paths_are_told_from_others() {
        let invoke = Target::Invoke { function: b"01CQ4S2K8JNG8G00GZJ0000001" };
        for (path, target) in [
            ("/invoke/01CQ4S2K8JNG8G00GZJ0000001", invoke),
            ("/invoke/x", Target::Invoke { function: b"x" }),
            ("/invoke", Target::Other),
            ("/invoke/", Target::Other),
            ("/invoke/x/", Target::Other),
            ("/invoke/x/y", Target::Other),
            ("/t/app", trigger("app", "/")),
            ("/t/app/", trigger("app", "/")),
            ("/t/app/hello", trigger("app", "/hello")),
            ("/t/app/hello/", trigger("app", "/hello/")),
            ("/t/app//x", trigger("app", "//x")),
            ("/t/app/t/app", trigger("app", "/t/app")),
            ("/t", Target::Other),
            ("/t/", Target::Other),
            ("/t//x", Target::Other),
            ("/tx/app", Target::Other),
            ("/v2/apps", Target::Other),
            ("/", Target::Other),
            ("", Target::Other),
        ] {
            assert_eq!(classify(path.as_bytes()), target, "{path}");
        }
    }

    #[test]
    fn escapes_are_removed_before_matching() {
        let decoded = decode(b"/t/%61pp%2fa%20b%C3%A9+").unwrap();
        assert_eq!(classify(&decoded), trigger("app", "/a b\u{e9}+"));
    }

    #[test]
    fn a_path_without_escapes_is_not_copied() {
        assert!(matches!(decode(b"/t/app/hello").unwrap(), Cow::Borrowed(b"/t/app/hello")));
    }

    #[test]
    fn bad_escapes_are_refused() {
        for path in ["%", "/a%", "/a%4", "/a%zz", "/a%4g", "/%%41", "/%+1", "/% 1", "/%\u{e9}"] {
            assert_eq!(decode(path.as_bytes()), Err(RouteError::BadEscape), "{path}");
        }
    }

    #[test]
    fn an_escape_is_removed_once() {
        assert_eq!(decode(b"/%2541").unwrap().as_ref(), b"/%41");
    }

    proptest! {
        #[test]
        fn any_bytes_survive_escaping(bytes in prop::collection::vec(any::<u8>(), 0..60), upper: bool) {
            let escaped: String = bytes
                .iter()
                .map(|byte| if upper { format!("%{byte:02X}") } else { format!("%{byte:02x}") })
                .collect();
            let decoded = decode(escaped.as_bytes()).unwrap();
            prop_assert_eq!(decoded.as_ref(), bytes.as_slice());
        }

        #[test]
        fn no_path_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(decoded) = decode(&bytes) {
                let _target = classify(&decoded);
            }
        }
    }
}
