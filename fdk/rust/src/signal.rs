//! The one place with foreign code: ending at SIGTERM, which the kernel ignores in a container's first process
//! unless it is asked for.
#![expect(unsafe_code, reason = "the standard library has no signals, and the core has no dependencies")]

const SIGTERM: i32 = 15;

unsafe extern "C" {
    safe fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    safe fn _exit(code: i32) -> !;
}

/// Ends the process with code 0 as soon as SIGTERM arrives.
pub(crate) fn exit_on_terminate() {
    // SIG_ERR is possible only for signals that do not exist.
    signal(SIGTERM, exit);
}

extern "C" fn exit(_signal: i32) {
    // Async-signal-safe: no buffers are flushed, no destructors run.
    _exit(0);
}
