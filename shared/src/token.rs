//! A secret that somebody must show.

use std::fmt;

use subtle::ConstantTimeEq as _;

/// A secret text. Never printed; compared in a time that tells at most its length.
#[derive(Clone)]
pub struct Token(Box<str>);

/// A text that cannot be a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is made of visible ASCII characters, and not empty")]
pub struct InvalidToken;

impl Token {
    /// Takes the text without the white space around it, as of a file's line.
    ///
    /// # Errors
    /// It is empty, or holds what cannot stand in a header.
    pub fn new(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidToken);
        }
        Ok(Self(text.into()))
    }

    /// True if `given` is this token.
    pub fn is(&self, given: &[u8]) -> bool {
        given.ct_eq(self.0.as_bytes()).into()
    }

    /// The secret itself, to be shown to a peer and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_it() {
        let token = Token::new(" s3cret\n").expect("a token");
        assert!(token.is(b"s3cret"));
        for other in [&b""[..], b"s3cre", b"s3cretx", b"S3cret", b"s3cret\n"] {
            assert!(!token.is(other), "{other:?}");
        }
    }

    #[test]
    fn it_is_never_printed() {
        let token = Token::new("s3cret").expect("a token");
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    #[test]
    fn what_cannot_stand_in_a_header_is_none() {
        for text in ["", " \n", "two words", "line\nbreak", "grün"] {
            assert!(Token::new(text).is_err(), "{text:?}");
        }
    }
}
