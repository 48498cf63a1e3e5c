//! The bearer token that callers must show, if one is configured (RFC 6750, 2.1).

use kiln_shared::call::{Failure, FailureKind};
use kiln_shared::token::Token;

/// The caller did not show the token (401, `WWW-Authenticate: Bearer`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Unauthorized")]
pub struct Unauthorized;

impl From<Unauthorized> for Failure {
    fn from(_: Unauthorized) -> Self {
        Self::new(FailureKind::BadRequest, 401, "Unauthorized")
    }
}

/// Lets callers pass that show the token, or all if there is none.
#[derive(Debug, Clone, Default)]
pub struct TokenGuard {
    token: Option<Token>,
}

impl TokenGuard {
    /// A guard that asks for `token`; `None` lets everyone pass.
    pub fn new(token: Option<Token>) -> Self {
        Self { token }
    }

    /// Checks the value of an `Authorization` header. The time taken tells at most the token's length.
    ///
    /// # Errors
    /// A token is asked for and the header is absent, of another scheme, or has another token.
    pub fn check(&self, authorization: Option<&[u8]>) -> Result<(), Unauthorized> {
        let Some(token) = &self.token else { return Ok(()) };
        let given = authorization.and_then(bearer).ok_or(Unauthorized)?;
        if token.is(given) { Ok(()) } else { Err(Unauthorized) }
    }
}

/// The token of a `Bearer` credential; schemes are compared without case (RFC 9110, 11.1).
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.trim_ascii().split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_token_everyone_passes() {
        let guard = TokenGuard::new(None);
        assert_eq!(guard.check(None), Ok(()));
        assert_eq!(guard.check(Some(b"Bearer whatever")), Ok(()));
    }

    #[test]
    fn only_the_token_passes() {
        let guard = TokenGuard::new(Some(Token::new("s3cret").unwrap()));
        for passes in ["Bearer s3cret", "bearer s3cret", "BEARER   s3cret "] {
            assert_eq!(guard.check(Some(passes.as_bytes())), Ok(()), "{passes}");
        }
        for fails in [
            "Bearer s3cre",
            "Bearer s3cretx",
            "Bearer S3cret",
            "Bearer ",
            "Bearer",
            "Basic s3cret",
            "s3cret",
            "",
        ] {
            assert_eq!(guard.check(Some(fails.as_bytes())), Err(Unauthorized), "{fails}");
        }
        assert_eq!(guard.check(None), Err(Unauthorized));
    }

    #[test]
    fn a_caller_without_the_token_gets_401() {
        assert_eq!(Failure::from(Unauthorized).status, 401);
    }
}
