//! The environment of a function's container (`spec/container-contract.md`, A1, B1, B2).
//!
//! Config first, then Kiln's own variables, which win. No name comes twice.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::call::CallRequest;
use crate::function::{Format, Function};
use crate::http1::title_case;

use super::deadline;
use super::digits::push_millis;

/// Where a function of the format `http-stream` makes its socket, as `FN_LISTENER` says it.
pub const LISTENER: &str = "unix:/tmp/iofs/lsnr.sock";
/// Until when the call of a container that serves no other has time.
const DEADLINE: &str = "FN_DEADLINE";

/// The environment of a container that serves many calls.
///
/// `path` is for `FN_PATH` of the pipe formats (a trigger's source, or `/invoke`); `http-stream` has none, since
/// its containers serve every path. Config entries that no environment can hold (an empty name, a name with
/// `=`, a NUL anywhere) are left out.
pub fn environment(function: &Function, path: &str) -> Vec<(String, String)> {
    let spec = &function.spec;
    let mut own = vec![
        ("FN_FORMAT", spec.format.as_str().to_owned()),
        ("FN_FN_ID", spec.id.as_str().to_owned()),
        ("FN_APP_ID", spec.app_id.as_str().to_owned()),
        ("FN_APP_NAME", spec.app_name.clone()),
        ("FN_FN_NAME", spec.name.clone()),
        ("FN_MEMORY", spec.memory_mib.to_string()),
        ("FN_TYPE", "sync".to_owned()),
    ];
    match spec.format {
        Format::HttpStream => own.insert(0, ("FN_LISTENER", LISTENER.to_owned())),
        _ => own.push(("FN_PATH", path.to_owned())),
    }
    if let Some(millis) = spec.cpu_millis {
        own.push(("FN_CPUS", format!("{millis}m")));
    }
    if let Some(mib) = spec.tmpfs_mib {
        own.push(("FN_TMPSIZE", mib.to_string()));
    }
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    over_config(&spec.config, own)
}

/// The environment of a container of the format `default`, which serves one call: also the call's id, method, URL,
/// headers, and the deadline, which is known when the container is about to be made.
///
/// Each header comes in two spellings: `FN_HEADER_Content-Type`, as Fn of 2018 wrote it, and
/// `FN_HEADER_CONTENT_TYPE`, as its documents did. Several values of a header are joined by `, `. A header whose
/// own name holds an underscore gets no second spelling, so that it cannot pass for another header.
#[derive(Debug, Clone)]
pub struct CallEnvironment {
    /// All but the deadline.
    variables: Vec<(String, String)>,
    timeout: Duration,
}

impl CallEnvironment {
    /// What the container of this call is told.
    pub fn new(call: &CallRequest) -> Self {
        let mut variables = call_variables(call);
        variables.retain(|(name, _)| name != DEADLINE);
        Self { variables, timeout: call.function.spec.timeout }
    }

    /// The variables of a container that is made at `now`.
    pub fn made_at(mut self, now: Timestamp) -> Vec<(String, String)> {
        self.variables.push((DEADLINE.to_owned(), deadline_text(deadline(now, self.timeout))));
        self.variables
    }
}

fn call_variables(call: &CallRequest) -> Vec<(String, String)> {
    let mut own = vec![
        ("FN_CALL_ID".to_owned(), call.id.as_str().to_owned()),
        ("FN_METHOD".to_owned(), call.method.as_str().to_owned()),
        ("FN_REQUEST_URL".to_owned(), call.url.clone()),
    ];
    let (with_underscore, plain): (Vec<_>, Vec<_>) =
        header_values(call).into_iter().partition(|(name, _)| name.contains('_'));
    for (name, value) in plain {
        let upper = format!("FN_HEADER_{}", name.to_ascii_uppercase().replace('-', "_"));
        let name = format!("FN_HEADER_{name}");
        if upper != name {
            own.push((upper, value.clone()));
        }
        own.push((name, value));
    }
    for (name, value) in with_underscore {
        let name = format!("FN_HEADER_{name}");
        if own.iter().all(|(other, _)| *other != name) {
            own.push((name, value));
        }
    }
    let names: HashSet<&str> = own.iter().map(|(name, _)| name.as_str()).collect();
    let mut all = environment(&call.function, &call.path);
    all.retain(|(name, _)| !names.contains(name.as_str()));
    all.append(&mut own);
    all
}

/// The client's headers by name in title case, several values joined by `, `, with the length of the body where
/// the client declared one. Bytes that are not UTF-8 are replaced.
fn header_values(call: &CallRequest) -> BTreeMap<String, String> {
    let mut values = BTreeMap::<String, String>::new();
    for (name, value) in &call.headers {
        let mut name = name.to_vec();
        title_case(&mut name);
        let value = String::from_utf8_lossy(value);
        values
            .entry(String::from_utf8_lossy(&name).into_owned())
            .and_modify(|values| {
                values.push_str(", ");
                values.push_str(&value);
            })
            .or_insert_with(|| value.clone().into_owned());
    }
    if let Some(length) = call.body.length().filter(|&length| length > 0) {
        values.insert("Content-Length".to_owned(), length.to_string());
    }
    values
}

/// Puts `own` after the entries of `config` whose names it does not take.
fn over_config(config: &BTreeMap<String, String>, own: Vec<(String, String)>) -> Vec<(String, String)> {
    let names: HashSet<&str> = own.iter().map(|(name, _)| name.as_str()).collect();
    let mut all: Vec<_> = config
        .iter()
        .filter(|(name, value)| {
            !name.is_empty()
                && !name.contains(['=', '\0'])
                && !value.contains('\0')
                && !names.contains(name.as_str())
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    all.extend(own);
    all
}

/// The deadline as the pipe formats write it: RFC 3339 with milliseconds, UTC.
pub(super) fn deadline_text(deadline: Timestamp) -> String {
    let mut text = Vec::with_capacity(24);
    push_millis(deadline, &mut text);
    String::from_utf8(text).expect("digits and separators are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::testing::{call, function};

    fn get<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
        let mut found =
            environment.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str());
        let first = found.next();
        assert_eq!(found.next(), None, "{name} comes twice");
        first
    }

    #[test]
    fn own_variables_win_over_config_and_no_name_comes_twice() {
        let mut spec = function(Format::HttpStream).spec;
        spec.config =
            [("FN_MEMORY", "lots"), ("FN_CUSTOM", "c"), ("A", "1"), ("B=", "x"), ("", "y"), ("N", "\0")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        spec.cpu_millis = Some(250);
        spec.tmpfs_mib = Some(64);
        let function = Function::new(spec);
        let environment = environment(&function, "/invoke");
        let names: Vec<_> = environment.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "A",
                "FN_CUSTOM",
                "FN_LISTENER",
                "FN_FORMAT",
                "FN_FN_ID",
                "FN_APP_ID",
                "FN_APP_NAME",
                "FN_FN_NAME",
                "FN_MEMORY",
                "FN_TYPE",
                "FN_CPUS",
                "FN_TMPSIZE"
            ]
        );
        for (name, value) in [
            ("FN_MEMORY", "128"),
            ("FN_LISTENER", "unix:/tmp/iofs/lsnr.sock"),
            ("FN_FORMAT", "http-stream"),
            ("FN_TYPE", "sync"),
            ("FN_CPUS", "250m"),
            ("FN_FN_ID", function.spec.id.as_str()),
            ("FN_APP_NAME", "demo"),
        ] {
            assert_eq!(get(&environment, name), Some(value), "{name}");
        }
    }

    #[test]
    fn pipe_formats_have_a_path_and_no_listener() {
        let environment = environment(&function(Format::Json), "/hello");
        assert_eq!(get(&environment, "FN_PATH"), Some("/hello"));
        assert_eq!(get(&environment, "FN_FORMAT"), Some("json"));
        assert_eq!(get(&environment, "FN_LISTENER"), None);
        assert_eq!(get(&environment, "FN_CPUS"), None);
    }

    #[test]
    fn a_default_container_knows_its_call() {
        let mut call = call(
            Format::Default,
            &[
                ("content-type", "text/plain"),
                ("x-two", "one"),
                ("X-Two", "two"),
                ("X", "single"),
                ("Content_type", "spoof"),
                ("X-1", "one"),
                ("X_1", "spoof"),
            ],
            "hello",
        );
        let mut spec = call.function.spec.clone();
        for name in ["FN_HEADER_CONTENT_TYPE", "FN_DEADLINE"] {
            spec.config.insert(name.to_owned(), "config".to_owned());
        }
        call.function = std::sync::Arc::new(Function::new(spec));
        let now = "2018-02-01T12:00:00.1234Z".parse().expect("a time");
        let environment = CallEnvironment::new(&call).made_at(now);
        for (name, value) in [
            ("FN_CALL_ID", call.id.as_str()),
            ("FN_METHOD", "POST"),
            ("FN_REQUEST_URL", "http://localhost:8080/t/demo/hello?x=1"),
            ("FN_DEADLINE", "2018-02-01T12:00:30.123Z"),
            ("FN_HEADER_Content-Type", "text/plain"),
            ("FN_HEADER_CONTENT_TYPE", "text/plain"),
            ("FN_HEADER_Content-Length", "5"),
            ("FN_HEADER_X-Two", "one, two"),
            ("FN_HEADER_X_TWO", "one, two"),
            ("FN_HEADER_X", "single"),
            ("FN_HEADER_Content_type", "spoof"),
            ("FN_HEADER_X_1", "one"),
            ("FN_FORMAT", "default"),
        ] {
            assert_eq!(get(&environment, name), Some(value), "{name}");
        }
    }
}
