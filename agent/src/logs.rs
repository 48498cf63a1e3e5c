//! Output of a container, told apart by call and bounded.
//!
//! Output that arrives while a call runs, or after it until the next one begins, belongs to that call. Output
//! before the first call is start-up output and goes to the agent's own log.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use kiln_shared::contract::{Limits, LogBudget};
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::record::{LogChunk, Record, RecordSink};

use crate::syslog::{Shipping, Tap};

/// Most bytes that are held back before they go to the store.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Where the output of a node's containers goes.
#[derive(Debug, Clone)]
pub(crate) struct Outlets {
    /// To the log store.
    pub(crate) records: RecordSink,
    /// To the apps' syslog sinks.
    pub(crate) syslog: Shipping,
}

struct Current {
    call: CallId,
    budget: LogBudget,
}

struct State {
    current: Option<Current>,
    pending: Vec<u8>,
    /// The number of the last piece.
    part: i64,
    /// The way to the app's syslog sinks.
    tap: Option<Tap>,
}

/// Collects one container's output. Cheap to clone; a call begins with one short lock.
#[derive(Clone)]
pub(crate) struct CallLog {
    app: AppId,
    function: FunctionId,
    limits: Limits,
    sink: RecordSink,
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for CallLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CallLog").field("function", &self.function).finish_non_exhaustive()
    }
}

impl CallLog {
    /// A log for a container of `function`, which goes to `tap` besides.
    pub(crate) fn new(
        app: AppId,
        function: FunctionId,
        limits: Limits,
        sink: RecordSink,
        tap: Option<Tap>,
    ) -> Self {
        let state = Arc::new(Mutex::new(State { current: None, pending: Vec::new(), part: 0, tap }));
        Self { app, function, limits, sink, state }
    }

    /// From now on output belongs to `call`.
    pub(crate) fn begin(&self, call: CallId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.hand_over(&mut state);
        if let Some(tap) = &mut state.tap {
            tap.begin(call);
        }
        state.current = Some(Current { call, budget: LogBudget::new(&self.limits) });
    }

    /// Takes output. Returns true if some of it is held back and [`Self::flush`] shall follow soon.
    pub(crate) fn write(&self, output: &[u8]) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { current, pending, tap, .. } = &mut *state;
        let mut ship = |output: &[u8]| {
            if let Some(tap) = tap {
                tap.write(output);
            }
        };
        let Some(current) = current else {
            ship(output);
            tracing::debug!(function = %self.function, output = %String::from_utf8_lossy(output), "output before the first call");
            return false;
        };
        let (kept, notice) = current.budget.take(output);
        pending.extend_from_slice(kept);
        ship(kept);
        if let Some(notice) = notice {
            pending.extend_from_slice(notice.as_bytes());
            ship(notice.as_bytes());
        }
        if pending.len() >= PIECE_BYTES_MAX {
            self.hand_over(&mut state);
        }
        !state.pending.is_empty()
    }

    /// Hands what is held back to the store. Returns true if a line has begun and not ended, which
    /// [`Self::end_line`] shall end if it does not go on for some time.
    pub(crate) fn flush(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.hand_over(&mut state);
        state.tap.as_ref().is_some_and(Tap::is_within_line)
    }

    /// Ends a line that has begun.
    pub(crate) fn end_line(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tap) = &mut state.tap {
            tap.end_line();
        }
    }

    fn hand_over(&self, state: &mut State) {
        if state.pending.is_empty() {
            return;
        }
        if let Some(current) = &state.current {
            // By the clock, so that what a call wrote in two containers does not get the same numbers.
            state.part = (state.part + 1).max(Timestamp::now().as_microsecond());
            self.sink.send(Record::Log(LogChunk {
                call_id: current.call,
                app_id: self.app,
                function_id: self.function,
                part: state.part,
                text: String::from_utf8_lossy(&state.pending).into_owned(),
            }));
        }
        state.pending = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_numbered_in_order_and_never_twice() {
        let (sink, mut records) = RecordSink::bounded(1000);
        let log = CallLog::new(AppId::generate(), FunctionId::generate(), Limits::default(), sink, None);
        log.begin(CallId::generate());
        for _ in 0..1000 {
            log.write(b"x");
            log.flush();
        }
        let mut parts = Vec::new();
        while let Ok(Record::Log(chunk)) = records.try_recv() {
            parts.push(chunk.part);
        }
        assert_eq!(parts.len(), 1000);
        assert!(parts.is_sorted_by(|one, next| one < next), "{parts:?}");
    }

    #[test]
    fn output_belongs_to_the_call_that_runs_and_is_bounded() {
        let (sink, mut records) = RecordSink::bounded(10);
        let limits = Limits { log_bytes_max: 4, ..Limits::default() };
        let log = CallLog::new(AppId::generate(), FunctionId::generate(), limits, sink, None);
        assert!(!log.write(b"start-up"));
        let (first, second) = (CallId::generate(), CallId::generate());
        log.begin(first);
        assert!(log.write(b"abcdef"));
        log.begin(second);
        assert!(log.write(b"x"));
        log.flush();
        let mut texts = Vec::new();
        while let Ok(Record::Log(chunk)) = records.try_recv() {
            texts.push((chunk.call_id, chunk.text));
        }
        assert_eq!(texts.len(), 2);
        assert_eq!(texts[0].0, first);
        assert!(texts[0].1.starts_with("abcd\n-----max log size 4 bytes exceeded"), "{}", texts[0].1);
        assert_eq!(texts[1], (second, "x".to_owned()));
    }
}
