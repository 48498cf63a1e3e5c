//! Answers in pieces: `{"pieces": 5, "delay_ms": 200}` writes five lines, each after a pause; `{"bytes": 104857600}`
//! writes that many bytes as fast as they are taken, in constant memory.

use std::io::Write;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use kiln_fdk::{FromInput, Json};
use serde::Deserialize;

static BLOCK: [u8; 64 * 1024] = [b'x'; 64 * 1024];

#[derive(Deserialize)]
#[serde(default)]
struct Ask {
    pieces: u32,
    delay_ms: u64,
    bytes: u64,
}

impl Default for Ask {
    fn default() -> Self {
        Self { pieces: 5, delay_ms: 200, bytes: 0 }
    }
}

fn main() -> ExitCode {
    kiln_fdk::run_streaming(|_, input, output| {
        let Json(ask) = Json::<Option<Ask>>::from_input(input.read_whole()?)?;
        let ask = ask.unwrap_or_default();
        if ask.bytes > 0 {
            output.set_content_type("application/octet-stream")?;
            let mut left_bytes = ask.bytes;
            while left_bytes > 0 {
                let block = usize::try_from(left_bytes).map_or(BLOCK.len(), |left| left.min(BLOCK.len()));
                output.write_all(&BLOCK[..block])?;
                left_bytes -= block as u64;
            }
            return Ok(());
        }
        output.set_content_type("text/plain; charset=utf-8")?;
        for piece in 1..=ask.pieces {
            thread::sleep(Duration::from_millis(ask.delay_ms));
            writeln!(output, "piece {piece} of {}", ask.pieces)?;
            output.flush()?;
        }
        Ok(())
    })
}
