//! What a function may take as its input.

use crate::Result;

/// A type that a whole request body can be read as.
pub trait FromInput: Sized {
    /// Reads the body.
    ///
    /// # Errors
    /// If it is something else; the text is what the client of an HTTP trigger sees, with status 400.
    fn from_input(body: Vec<u8>) -> Result<Self>;
}

/// The body is passed over.
impl FromInput for () {
    fn from_input(_body: Vec<u8>) -> Result<Self> {
        Ok(())
    }
}

impl FromInput for Vec<u8> {
    fn from_input(body: Vec<u8>) -> Result<Self> {
        Ok(body)
    }
}

impl FromInput for String {
    fn from_input(body: Vec<u8>) -> Result<Self> {
        Ok(String::from_utf8(body)?)
    }
}
