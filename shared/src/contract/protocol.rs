//! The `protocol` object of `json` and `cloudevent` messages, both ways.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::call::CallRequest;
use crate::http1::{HeaderBlock, title_case};

use super::answer;

/// How the call came in.
#[derive(Debug, Serialize)]
pub(super) struct RequestProtocol<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    method: &'a str,
    request_url: &'a str,
    headers: BTreeMap<String, Vec<String>>,
}

impl<'a> RequestProtocol<'a> {
    /// The client's method, URL and headers, these by name in title case, with the length of the body where it is
    /// known. Bytes that are not UTF-8 are replaced.
    pub(super) fn of(call: &'a CallRequest) -> Self {
        let mut headers = BTreeMap::<String, Vec<String>>::new();
        for (name, value) in &call.headers {
            let mut name = name.to_vec();
            title_case(&mut name);
            let name = String::from_utf8_lossy(&name).into_owned();
            headers.entry(name).or_default().push(String::from_utf8_lossy(value).into_owned());
        }
        if let Some(length) = call.body.length().filter(|&length| length > 0) {
            headers.insert("Content-Length".to_owned(), vec![length.to_string()]);
        }
        Self { kind: "http", method: call.method.as_str(), request_url: &call.url, headers }
    }
}

/// How the function answered.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AnswerProtocol {
    status_code: Option<i64>,
    headers: Option<BTreeMap<String, Option<Vec<String>>>>,
}

impl AnswerProtocol {
    /// Status and header lines for the client; no status and status 0 count as 200.
    ///
    /// # Errors
    /// What about them cannot be in an answer.
    pub(super) fn head(self, content_type: Option<&str>) -> Result<(u16, HeaderBlock), String> {
        let status = match self.status_code.unwrap_or(0) {
            0 => 200,
            code => u16::try_from(code)
                .ok()
                .filter(|code| (200..1000).contains(code))
                .ok_or_else(|| format!("{code} is not a status"))?,
        };
        let headers = self.headers.unwrap_or_default();
        let lines = headers.iter().flat_map(|(name, values)| {
            values.iter().flatten().map(move |value| (name.as_bytes(), value.as_bytes()))
        });
        let content_type = content_type.filter(|text| !text.is_empty()).map(str::as_bytes);
        let headers = answer::headers(status, lines, content_type).map_err(|error| error.to_string())?;
        Ok((status, headers))
    }
}
