//! Answers with its input, whatever its size, in constant memory.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    kiln_fdk::run_streaming(|context, input, output| {
        output.set_content_type(context.content_type().unwrap_or("application/octet-stream"))?;
        io::copy(input, output)?;
        Ok(())
    })
}
