//! Join tokens: a short-lived secret with which a machine asks for its first certificate.
//!
//! `kiln-join-1.` and, in base64url without padding: fingerprint of the CA (32 bytes), id (16), expiry in seconds
//! since 1970 (8, big endian), role (1), and an HMAC-SHA256 of all that (32) under a key derived from the CA's.
//! So whoever has the CA can check a token without having seen it before.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::certificate::{date, spoken, unix_seconds};
use super::{CertificateAuthority, Fingerprint, Role};

/// Longest life of a join token. Redeemed ids are kept at most so long.
pub const TOKEN_VALID_FOR_MAX: Duration = Duration::from_hours(7 * 24);

const PREFIX: &str = "kiln-join-1.";
const ID_BYTES: usize = 16;
const MAC_BYTES: usize = 32;
/// What the code is made of: fingerprint, id, expiry, role.
const CLAIM_BYTES: usize = Fingerprint::BYTES + ID_BYTES + size_of::<u64>() + 1;
const TOKEN_BYTES: usize = CLAIM_BYTES + MAC_BYTES;

/// Why a text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else altogether.
    #[error("not a join token; copy all of what `kiln node token` printed, from kiln-join-1 on")]
    Prefix,
    /// A token in part, or with more behind it.
    #[error("the join token is cut or damaged; copy all of what `kiln node token` printed")]
    Damaged,
}

/// Why no token was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// No life, or too long a one.
    #[error("a join token lives for 1 second to 7 days, not {}", spoken(*.0))]
    ValidFor(Duration),
}

/// Names one token, so that it is redeemed once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId([u8; ID_BYTES]);

impl fmt::Display for TokenId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

/// A token as read. Whether the CA made it is known only by the CA.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    ca: Fingerprint,
    id: TokenId,
    expires_at_seconds: u64,
    role: Role,
    mac: [u8; MAC_BYTES],
}

impl JoinToken {
    /// The CA of the fleet to join.
    pub fn ca(&self) -> Fingerprint {
        self.ca
    }

    /// Its name.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// Its last second.
    pub fn expires_at(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.expires_at_seconds)).unwrap_or(UNIX_EPOCH)
    }

    /// True from the second after its last.
    pub fn has_expired(&self, now: SystemTime) -> bool {
        unix_seconds(now) > self.expires_at_seconds
    }

    /// What who shows it becomes.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The secret text, for who is to join and for nobody else.
    pub fn expose(&self) -> String {
        let mut bytes = [0; TOKEN_BYTES];
        bytes[..CLAIM_BYTES].copy_from_slice(&self.claim());
        bytes[CLAIM_BYTES..].copy_from_slice(&self.mac);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    fn claim(&self) -> [u8; CLAIM_BYTES] {
        let mut claim = [0; CLAIM_BYTES];
        claim[..32].copy_from_slice(self.ca.as_bytes());
        claim[32..48].copy_from_slice(&self.id.0);
        claim[48..56].copy_from_slice(&self.expires_at_seconds.to_be_bytes());
        claim[56] = match self.role {
            Role::Agent => 0,
            Role::Balancer => 1,
        };
        claim
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let bytes: [u8; TOKEN_BYTES] = URL_SAFE_NO_PAD
            .decode(body)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(TokenError::Damaged)?;
        let mut fields = Fields(&bytes);
        Ok(Self {
            ca: Fingerprint::from_bytes(fields.take()),
            id: TokenId(fields.take()),
            expires_at_seconds: u64::from_be_bytes(fields.take()),
            role: match fields.take() {
                [0] => Role::Agent,
                [1] => Role::Balancer,
                _ => return Err(TokenError::Damaged),
            },
            mac: fields.take(),
        })
    }
}

/// The bytes of a token that are still to be read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields are as long as the token");
        self.0 = rest;
        *field
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "JoinToken({} for one {} until {})", self.id, self.role, date(self.expires_at()))
    }
}

impl CertificateAuthority {
    /// Makes a token with which one machine may join as `role`, for `valid_for` from `now`.
    ///
    /// # Errors
    /// `valid_for` is under a second or over [`TOKEN_VALID_FOR_MAX`].
    pub fn mint_token(
        &self,
        role: Role,
        valid_for: Duration,
        now: SystemTime,
    ) -> Result<JoinToken, MintError> {
        if !(Duration::from_secs(1)..=TOKEN_VALID_FOR_MAX).contains(&valid_for) {
            return Err(MintError::ValidFor(valid_for));
        }
        let mut token = JoinToken {
            ca: self.fingerprint(),
            id: TokenId(rand::random()),
            expires_at_seconds: unix_seconds(now) + valid_for.as_secs(),
            role,
            mac: [0; MAC_BYTES],
        };
        let mac = hmac::sign(self.token_key(), &token.claim());
        token.mac.copy_from_slice(mac.as_ref());
        Ok(token)
    }

    /// True if this CA made the token. Takes the same time whatever is wrong with it.
    pub(super) fn minted(&self, token: &JoinToken) -> bool {
        hmac::verify(self.token_key(), &token.claim(), &token.mac).is_ok()
    }
}
