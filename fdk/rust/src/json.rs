//! Typed JSON input and output.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{FromInput, IntoResponse, Response, Result};

/// A body in JSON. As input, an empty body counts as `null`, so that `Json<Option<T>>` takes calls without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromInput for Json<T> {
    fn from_input(body: Vec<u8>) -> Result<Self> {
        let text: &[u8] = if body.trim_ascii().is_empty() { b"null" } else { &body };
        Ok(Self(serde_json::from_slice(text)?))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Result<Response> {
        Ok(Response::new(serde_json::to_vec(&self.0)?).with_content_type("application/json"))
    }
}
