//! Bounds of what functions may send, and of what the formats hold in memory. What clients may send is the edge's.

use crate::call::Failure;
use crate::http1::HeaderBlock;
use crate::http1::head::HeadLimits;

use super::CallFailed;

/// Bounds of one call. Zero means no limit only where it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest head of a function's answer in bytes; a larger one gets 502 and the container is killed.
    /// Default 1 MiB. Fn: `FN_MAX_HDR_RESPONSE_SIZE`.
    pub response_head_bytes_max: usize,
    /// Longest body of a function's answer in bytes; a larger one gets 502, or is cut off if its beginning is
    /// already with the client, and the container is killed. Zero: no limit. Default 0. Fn: `FN_MAX_RESPONSE_SIZE`.
    pub response_bytes_max: u64,
    /// Longest answer object of the formats `json` and `cloudevent` in bytes, which is held in memory as a
    /// whole. Default 16 MiB.
    pub json_answer_bytes_max: usize,
    /// Longest request body of the format `cloudevent` in bytes, which is held in memory as a whole.
    /// Default 16 MiB.
    pub event_bytes_max: usize,
    /// What is kept of a call's output in bytes. Default 1 MiB. Fn: `FN_MAX_LOG_SIZE_BYTES`.
    pub log_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            response_head_bytes_max: 1024 * 1024,
            response_bytes_max: 0,
            json_answer_bytes_max: 16 * 1024 * 1024,
            event_bytes_max: 16 * 1024 * 1024,
            log_bytes_max: 1024 * 1024,
        }
    }
}

impl Limits {
    /// Checks the length that an answer declares, or how much of its body was read so far.
    ///
    /// # Errors
    /// 502. What the function still has to write would go to a later caller, so its container is killed.
    pub fn check_response(&self, bytes: u64) -> Result<(), CallFailed> {
        if self.response_bytes_max == 0 || bytes <= self.response_bytes_max {
            return Ok(());
        }
        Err(CallFailed::kill(Failure::response_body_too_large()))
    }

    /// Checks header lines that did not come in a head, as [`Self::response_head`] bounds those that did: the balancer
    /// reads no longer ones.
    ///
    /// # Errors
    /// 502, and the container is killed.
    pub fn check_response_lines(&self, headers: &HeaderBlock) -> Result<(), CallFailed> {
        let bounds = self.response_head();
        if headers.as_bytes().len() <= bounds.bytes_max && headers.iter().count() <= bounds.fields_max {
            return Ok(());
        }
        Err(CallFailed::kill(Failure::response_head_too_large()))
    }

    /// Bounds for the head of a function's answer.
    pub fn response_head(&self) -> HeadLimits {
        HeadLimits { bytes_max: self.response_head_bytes_max, ..HeadLimits::default() }
    }
}

/// What may still be kept of one call's output.
#[derive(Debug, Clone)]
pub struct LogBudget {
    bytes_max: usize,
    bytes_left: usize,
    exceeded: bool,
}

impl LogBudget {
    /// A fresh budget for a call.
    pub fn new(limits: &Limits) -> Self {
        Self { bytes_max: limits.log_bytes_max, bytes_left: limits.log_bytes_max, exceeded: false }
    }

    /// The part of `output` to keep and, once per call when the budget is exceeded, the notice to append
    /// (`spec/container-contract.md`, A6).
    pub fn take<'a>(&mut self, output: &'a [u8]) -> (&'a [u8], Option<String>) {
        let kept = &output[..output.len().min(self.bytes_left)];
        self.bytes_left -= kept.len();
        let first_excess = kept.len() < output.len() && !self.exceeded;
        self.exceeded |= first_excess;
        let notice = first_excess
            .then(|| format!("\n-----max log size {} bytes exceeded, truncating log-----\n", self.bytes_max));
        (kept, notice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::ContainerFate;

    #[test]
    fn zero_is_no_limit() {
        let limits = Limits::default();
        assert_eq!(limits.check_response(u64::MAX), Ok(()));
    }

    #[test]
    fn lengths_up_to_the_limit_pass() {
        let limits = Limits { response_bytes_max: 10, ..Limits::default() };
        assert_eq!(limits.check_response(10), Ok(()));
        let cut = limits.check_response(11).expect_err("over the limit");
        assert_eq!((cut.failure.status, cut.container), (502, ContainerFate::Kill));
    }

    #[test]
    fn a_log_is_cut_once_and_says_so_once() {
        let mut budget = LogBudget::new(&Limits { log_bytes_max: 5, ..Limits::default() });
        assert_eq!(budget.take(b"abc"), (&b"abc"[..], None));
        assert_eq!(budget.take(b"de"), (&b"de"[..], None));
        let (kept, notice) = budget.take(b"f");
        assert_eq!(kept, b"");
        assert_eq!(notice.as_deref(), Some("\n-----max log size 5 bytes exceeded, truncating log-----\n"));
        assert_eq!(budget.take(b"g"), (&b""[..], None));
    }
}
