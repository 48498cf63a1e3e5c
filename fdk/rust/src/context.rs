//! What a function can know about its call.

use std::time::{Duration, SystemTime};

use crate::http::Head;
use crate::time;

const GATEWAY_PREFIX: &str = "Fn-Http-H-";

/// One call: who, how, until when.
#[derive(Debug)]
pub struct Context {
    head: Head,
    is_http: bool,
}

impl Context {
    pub(crate) fn new(head: Head) -> Self {
        let is_http = head.header("Fn-Intent") == Some("httprequest");
        Self { head, is_http }
    }

    /// The call's id, which also names it in logs and records.
    pub fn call_id(&self) -> &str {
        self.head.header("Fn-Call-Id").unwrap_or_default()
    }

    /// When the call must have ended; the container is killed if it has not.
    pub fn deadline(&self) -> Option<SystemTime> {
        time::parse(self.head.header("Fn-Deadline")?)
    }

    /// Time left until the deadline; zero once it has passed.
    pub fn time_left(&self) -> Option<Duration> {
        Some(self.deadline()?.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// True if the call came through an HTTP trigger: status and headers of the answer reach the client.
    pub fn is_http(&self) -> bool {
        self.is_http
    }

    /// The client's method; `POST` for calls that did not come through an HTTP trigger.
    pub fn method(&self) -> &str {
        self.head.header("Fn-Http-Method").filter(|_| self.is_http).unwrap_or("POST")
    }

    /// The client's whole URL, of calls that came through an HTTP trigger.
    pub fn request_url(&self) -> Option<&str> {
        self.head.header("Fn-Http-Request-Url").filter(|_| self.is_http)
    }

    /// The first value of a header that the client sent, names compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The headers that the client sent, as (name, value), in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.head.headers().filter_map(|(name, value)| {
            if !self.is_http || name.eq_ignore_ascii_case("Content-Type") {
                return Some((name, value));
            }
            let (prefix, name) = name.split_at_checked(GATEWAY_PREFIX.len())?;
            prefix.eq_ignore_ascii_case(GATEWAY_PREFIX).then_some((name, value))
        })
    }

    /// The type of the request's body.
    pub fn content_type(&self) -> Option<&str> {
        self.head.header("Content-Type")
    }

    /// A header of the call as the platform sent it, with `Fn-` headers and nothing taken off its name.
    pub fn raw_header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// An entry of the app's or the function's configuration, or any other variable of the environment.
    pub fn config(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    /// The function's name, where the platform tells it.
    pub fn function_name(&self) -> Option<String> {
        self.config("FN_FN_NAME")
    }

    /// The app's name, where the platform tells it.
    pub fn app_name(&self) -> Option<String> {
        self.config("FN_APP_NAME")
    }

    /// Memory limit of the container in MiB, where the platform tells it.
    pub fn memory_mib(&self) -> Option<u64> {
        self.config("FN_MEMORY")?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(lines: &str) -> Context {
        let head = format!("POST /call HTTP/1.1\r\n{lines}\r\n");
        Context::new(Head::read(&mut head.as_bytes()).expect("valid").expect("a head"))
    }

    #[test]
    fn a_triggers_headers_lose_their_prefix() {
        let context = context(
            "Fn-Call-Id: 01C\r\nFn-Deadline: 2018-09-30T12:00:30Z\r\nFn-Intent: httprequest\r\nFn-Http-Method: PUT\r\n\
             Fn-Http-Request-Url: http://h/t/a/b?x=1\r\nFn-Http-H-Accept: */*\r\nContent-Type: text/x\r\n",
        );
        assert_eq!(context.call_id(), "01C");
        assert!(context.is_http());
        assert_eq!(context.method(), "PUT");
        assert_eq!(context.request_url(), Some("http://h/t/a/b?x=1"));
        assert_eq!(context.header("accept"), Some("*/*"));
        assert_eq!(context.header("Fn-Intent"), None);
        assert_eq!(context.raw_header("fn-intent"), Some("httprequest"));
        assert_eq!(context.headers().collect::<Vec<_>>(), [("Accept", "*/*"), ("Content-Type", "text/x")]);
        assert_eq!(context.time_left(), Some(Duration::ZERO));
    }

    #[test]
    fn an_invocation_cannot_pass_for_a_trigger() {
        let context = context("Fn-Http-Method: PUT\r\nFn-Http-Request-Url: http://h/\r\nX-A: b\r\n");
        assert!(!context.is_http());
        assert_eq!(context.method(), "POST");
        assert_eq!(context.request_url(), None);
        assert_eq!(context.header("x-a"), Some("b"));
        assert_eq!((context.call_id(), context.deadline()), ("", None));
    }
}
