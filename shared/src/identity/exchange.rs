//! Joining a fleet: what a machine with a token asks, and what a holder of the CA answers.
//!
//! Messages and decisions alone; who carries them also remembers which tokens were redeemed.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::certificate::{date, spoken, unix_seconds};
use super::{
    CLOCK_DIFFERENCE_MAX, CertificateAuthority, CertificateRequest, Fingerprint, JoinToken, NameError, Peer,
    SignError, SignedCertificate, TokenError, TokenId,
};

/// Asks for the first certificate of a machine.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's text.
    pub token: String,
    /// The node id or balancer's name that is wanted.
    pub name: String,
    /// The request for a certificate, as PEM.
    pub csr_pem: String,
    /// The asking machine's clock: seconds since 1970.
    pub clock_seconds: u64,
}

impl JoinRequest {
    /// Asks to be `name`, with the key of `request`.
    pub fn new(token: &JoinToken, name: &str, request: &CertificateRequest, now: SystemTime) -> Self {
        Self {
            token: token.expose(),
            name: name.to_owned(),
            csr_pem: request.csr_pem().to_owned(),
            clock_seconds: unix_seconds(now),
        }
    }
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("JoinRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinAnswer {
    /// Welcome.
    Joined(SignedCertificate),
    /// No.
    Refused {
        /// A word for programs: [`JoinRefused::reason`].
        reason: String,
        /// A sentence for people.
        message: String,
    },
}

impl From<&Result<Redeemed, JoinRefused>> for JoinAnswer {
    fn from(redeemed: &Result<Redeemed, JoinRefused>) -> Self {
        match redeemed {
            Ok(redeemed) => Self::Joined(redeemed.signed.clone()),
            Err(refused) => {
                Self::Refused { reason: refused.reason().to_owned(), message: refused.to_string() }
            }
        }
    }
}

/// Why a machine may not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinRefused {
    /// Not a token.
    #[error(transparent)]
    Malformed(#[from] TokenError),
    /// A token of another fleet, or of a CA that was replaced.
    #[error(
        "the join token is of the CA {token}, and this fleet's is {ours}; make a new one here with `kiln node token`"
    )]
    WrongCa {
        /// The token's.
        token: Fingerprint,
        /// The one that was asked.
        ours: Fingerprint,
    },
    /// It names this CA, which did not make it.
    #[error(
        "the join token was not made by this fleet's CA; copy it again or make a new one with `kiln node token`"
    )]
    Forged,
    /// Too late.
    #[error("the join token ended on {}; make a new one with `kiln node token`", date(*ended))]
    Expired {
        /// Its last second.
        ended: SystemTime,
    },
    /// It was redeemed before.
    #[error(
        "the join token was used before; each joins one machine, so make a new one with `kiln node token`"
    )]
    Replayed,
    /// The name may not be used any more.
    #[error("a node of this name was removed from the fleet; join under another name, with the same token")]
    Removed,
    /// Whether it was redeemed before cannot be told now.
    #[error(
        "redeemed tokens cannot be recorded now; try again in a moment, and with a new token if this one is then said to \
         be used"
    )]
    Unrecorded,
    /// The machine's clock would fail every handshake.
    #[error(
        "the joining machine's clock is {} {}; set it (at most {} off is allowed) and join again with the same token",
        spoken(*off), if *ahead { "ahead" } else { "behind" }, spoken(CLOCK_DIFFERENCE_MAX)
    )]
    ClockOff {
        /// By how much.
        off: Duration,
        /// The machine's clock shows a later time than ours.
        ahead: bool,
    },
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The request for a certificate, or the CA itself.
    #[error(transparent)]
    Sign(#[from] SignError),
}

impl JoinRefused {
    /// One word for logs, metrics and programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed_token",
            Self::WrongCa { .. } => "wrong_ca",
            Self::Forged => "forged_token",
            Self::Expired { .. } => "expired_token",
            Self::Replayed => "replayed_token",
            Self::Removed => "removed",
            Self::Unrecorded => "unrecorded",
            Self::ClockOff { .. } => "clock_off",
            Self::Name(_) => "bad_name",
            Self::Sign(_) => "not_signed",
        }
    }
}

/// What became of the attempt to record a token's id as redeemed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It was not there before.
    First,
    /// It was there already.
    Again,
    /// The name may not be used any more; nothing was recorded.
    Removed,
    /// It could not be recorded.
    Unavailable,
}

/// A machine that may join.
#[derive(Debug, Clone)]
pub struct Redeemed {
    /// Who it is from now on.
    pub peer: Peer,
    /// Its certificate.
    pub signed: SignedCertificate,
}

impl CertificateAuthority {
    /// Signs the first certificate of a machine with a good token.
    ///
    /// `claim` is asked last, once, with the token's id and last second: it must record the id, for all who hold this
    /// CA, and say if it was there already. It may take the same request again for the first: its answer may have been
    /// lost. Ids may be forgotten after the token's last second.
    ///
    /// # Errors
    /// The token, name, clock or request is bad, or the token was redeemed before. Only then is the token used up.
    pub async fn redeem(
        &self,
        request: &JoinRequest,
        valid_for: Duration,
        now: SystemTime,
        claim: impl AsyncFnOnce(TokenId, SystemTime) -> Claim,
    ) -> Result<Redeemed, JoinRefused> {
        let token = self.check(request, now)?;
        let peer = Peer::new(token.role(), request.name.as_str())?;
        let signed = self.sign(&request.csr_pem, &peer, valid_for, now)?;
        match claim(token.id(), token.expires_at()).await {
            Claim::First => Ok(Redeemed { peer, signed }),
            Claim::Again => Err(JoinRefused::Replayed),
            Claim::Removed => Err(JoinRefused::Removed),
            Claim::Unavailable => Err(JoinRefused::Unrecorded),
        }
    }

    /// The request's token, if it is good and the machine's clock is right.
    fn check(&self, request: &JoinRequest, now: SystemTime) -> Result<JoinToken, JoinRefused> {
        let token: JoinToken = request.token.parse()?;
        if token.ca() != self.fingerprint() {
            return Err(JoinRefused::WrongCa { token: token.ca(), ours: self.fingerprint() });
        }
        if !self.minted(&token) {
            return Err(JoinRefused::Forged);
        }
        if token.has_expired(now) {
            return Err(JoinRefused::Expired { ended: token.expires_at() });
        }
        let (theirs, ours) = (request.clock_seconds, unix_seconds(now));
        let off = Duration::from_secs(theirs.abs_diff(ours));
        if off > CLOCK_DIFFERENCE_MAX {
            return Err(JoinRefused::ClockOff { off, ahead: theirs > ours });
        }
        Ok(token)
    }
}
