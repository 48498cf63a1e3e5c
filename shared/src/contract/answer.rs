//! Status and headers of an answer that came over a pipe.
//!
//! The rules of `spec/corrections-2018.md` where Fn of 2018 had defects: hop-by-hop headers stay here, the
//! function's content type replaces the default one instead of following it, and names that are the platform's
//! cannot be set by a function.

use crate::http1::{HeaderBlock, InvalidHeader};

use super::http_stream::{is_content_type, is_reserved};

/// The content type of an answer that has none.
pub(super) const DEFAULT_CONTENT_TYPE: &[u8] = b"application/json";

/// Header lines for the client. `content_type` wins over the lines' own, of which the first counts.
///
/// # Errors
/// At the first line that cannot be a header.
pub(super) fn headers<'a>(
    status: u16,
    lines: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    content_type: Option<&[u8]>,
) -> Result<HeaderBlock, InvalidHeader> {
    let mut headers = HeaderBlock::new();
    let mut own_content_type = None;
    for (name, value) in lines {
        if is_content_type(name) {
            own_content_type = own_content_type.or(Some(value));
        } else if !(is_reserved(name, value) || is_platforms(name)) {
            headers.push(name, value)?;
        }
    }
    let default = if has_body(status) { Some(DEFAULT_CONTENT_TYPE) } else { None };
    if let Some(value) = content_type.or(own_content_type).or(default) {
        headers.push(b"Content-Type", value)?;
    }
    Ok(headers)
}

/// False for statuses whose answers have no body (RFC 9110, 15.3.5, 15.4.5).
pub(super) fn has_body(status: u16) -> bool {
    status != 204 && status != 304
}

/// True for headers that the API of 2018 adds itself.
fn is_platforms(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"Fn_call_id") || name.eq_ignore_ascii_case(b"Xxx-Fxlb-Wait")
}
