//! Header lines in the form in which they go over the wire.
//!
//! A [`HeaderBlock`] is a run of `Name: value\r\n` lines, each of them valid, so that forwarding a head is a
//! copy of bytes and reading one header is a scan. Functions and clients see names as their sender wrote
//! them; names that come without case (HTTP/2) are written in title case, which is what FDKs expect
//! (`spec/container-contract.md`, A3).

use std::fmt;

/// A header that must not go over the wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid header {name:?}: {reason}")]
pub struct InvalidHeader {
    /// The name as given.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Valid header lines.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HeaderBlock(Vec<u8>);

impl HeaderBlock {
    /// No lines.
    pub fn new() -> Self {
        Self::default()
    }

    /// No lines, with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If the name is not a token or the value holds a line break or other control character (RFC 9110, 5.1, 5.5).
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidHeader> {
        let invalid = |reason| InvalidHeader { name: String::from_utf8_lossy(name).into_owned(), reason };
        if name.is_empty() || !name.iter().copied().all(is_token_byte) {
            return Err(invalid("the name is not a token"));
        }
        if !value.iter().copied().all(is_value_byte) {
            return Err(invalid("the value holds a control character"));
        }
        self.push_valid(name, value);
        Ok(())
    }

    /// Adds a line that the caller knows to be valid: one that came out of a parsed head, or is made of
    /// constants and ids.
    pub fn push_valid(&mut self, name: &[u8], value: &[u8]) {
        debug_assert!(!name.is_empty() && name.iter().copied().all(is_token_byte), "invalid name {name:?}");
        debug_assert!(value.iter().copied().all(is_value_byte), "invalid value of {name:?}");
        self.0.reserve(name.len() + value.len() + 4);
        self.0.extend_from_slice(name);
        self.0.extend_from_slice(b": ");
        self.0.extend_from_slice(value.trim_ascii());
        self.0.extend_from_slice(b"\r\n");
    }

    /// Adds a line whose name has no case of its own (HTTP/2), in title case.
    pub fn push_title_case(&mut self, name: &[u8], value: &[u8]) {
        let start = self.0.len();
        self.push_valid(name, value);
        title_case(&mut self.0[start..start + name.len()]);
    }

    /// Adds all lines of another block.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// The lines, in order.
    pub fn iter(&self) -> Lines<'_> {
        Lines(&self.0)
    }

    /// The first value of a header, names compared without case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// Removes the first line, if it has this name, and returns what `read` makes of its value. O(length).
    pub fn take_first<T>(&mut self, name: &str, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let mut lines = self.iter();
        let (first, value) = lines.next()?;
        if !first.eq_ignore_ascii_case(name.as_bytes()) {
            return None;
        }
        let taken = read(value);
        let end = self.0.len() - lines.0.len();
        self.0.drain(..end);
        Some(taken)
    }

    /// The lines as they go over the wire, without the empty line that ends a head.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// True if there is no line.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a HeaderBlock {
    type Item = (&'a [u8], &'a [u8]);
    type IntoIter = Lines<'a>;

    fn into_iter(self) -> Lines<'a> {
        self.iter()
    }
}

impl fmt::Debug for HeaderBlock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names only: values can hold credentials.
        formatter.debug_list().entries(self.iter().map(|(name, _)| String::from_utf8_lossy(name))).finish()
    }
}

/// Iterator over the lines of a [`HeaderBlock`] as (name, value).
#[derive(Debug, Clone)]
pub struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let colon = memchr::memchr(b':', self.0)?;
        let end = memchr::memchr(b'\r', self.0)?;
        let line = (&self.0[..colon], &self.0[colon + 2..end]);
        self.0 = &self.0[end + 2..];
        Some(line)
    }
}

/// True for the bytes of a token (RFC 9110, 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// True for the bytes of a field value (RFC 9110, 5.5): visible characters, space, tab and opaque bytes.
pub fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Writes the first letter and each letter after a hyphen as a capital, the others small.
pub fn title_case(name: &mut [u8]) {
    let mut start = true;
    for byte in name {
        *byte = if start { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        start = *byte == b'-';
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_in_order() {
        let mut block = HeaderBlock::new();
        block.push(b"Accept", b"*/*").expect("valid");
        block.push(b"X-Empty", b"").expect("valid");
        block.push_title_case(b"content-type", b"text/plain");
        let lines: Vec<_> = block.iter().collect();
        assert_eq!(
            lines,
            [(&b"Accept"[..], &b"*/*"[..]), (b"X-Empty", b""), (b"Content-Type", b"text/plain")]
        );
        assert_eq!(block.get("x-empty"), Some(&b""[..]));
    }

    #[test]
    fn line_breaks_and_bad_names_are_refused() {
        let mut block = HeaderBlock::new();
        for (name, value) in
            [(&b"A"[..], &b"b\r\nC: d"[..]), (b"A b", b"c"), (b"", b"c"), (b"A:", b"c"), (b"A", b"\0")]
        {
            assert!(block.push(name, value).is_err(), "{name:?}: {value:?}");
        }
        assert!(block.is_empty());
    }
}
