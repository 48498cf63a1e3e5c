//! Fails in the way that the input names: `error`, `panic`, `abort`, `exit N`, `cut` (exits in the middle of the
//! answer), `hang`, `memory` (takes all it can get). Other inputs succeed.

use std::hint::black_box;
use std::io::Write;
use std::process;
use std::thread;
use std::time::Duration;

const MEMORY_STEP_BYTES: usize = 1024 * 1024;

fn main() -> process::ExitCode {
    kiln_fdk::run_streaming(|_, input, output| {
        let way = String::from_utf8(input.read_whole()?)?;
        let mut words = way.split_whitespace();
        match words.next() {
            Some("error") => return Err("asked to fail".into()),
            Some("panic") => panic!("asked to panic"),
            Some("abort") => process::abort(),
            Some("exit") => process::exit(words.next().unwrap_or("1").parse()?),
            Some("cut") => {
                output.write_all(b"the beginning of an answer")?;
                output.flush()?;
                process::exit(3);
            }
            Some("hang") => loop {
                thread::sleep(Duration::from_hours(1));
            },
            Some("memory") => take_memory(),
            _ => output.write_all(b"still here\n")?,
        }
        Ok(())
    })
}

/// Takes memory and touches it, until the kernel has enough of it.
fn take_memory() {
    let mut taken = Vec::new();
    loop {
        taken.push(black_box(vec![1u8; MEMORY_STEP_BYTES]));
    }
}
