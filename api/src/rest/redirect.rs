//! Paths with a slash too many, or one too few: Fn's router sends their callers to the right one.
//!
//! The rule is gin's `RedirectTrailingSlash`, which Fn's server leaves on (`spec/observed-fn-2018.txt`, "route get, root:
//! nothing after routes/"). Nothing else of a path is mended.

use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::path::PathItem;

/// The API's paths with their methods.
pub(super) struct Paths(Vec<(String, PathItem)>);

impl Paths {
    /// The paths of a document, wildcards and all.
    pub(super) fn of(document: &Document) -> Self {
        Self(document.paths.paths.iter().map(|(path, item)| (path.clone(), item.clone())).collect())
    }

    /// The answer to a request whose path leads somewhere with a slash more or less at its end.
    pub(super) fn redirect(&self, method: &Method, uri: &Uri) -> Option<Response> {
        let path = uri.path();
        let other = path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned);
        if !self.0.iter().any(|(pattern, item)| is_served(item, method) && matches(pattern, &other)) {
            return None;
        }
        let location = match uri.query() {
            Some(query) => format!("{other}?{query}"),
            None => other,
        };
        Some(if method.is_safe() {
            let status = StatusCode::MOVED_PERMANENTLY;
            let body = format!("<a href=\"{}\">Moved Permanently</a>.\n\n", escaped(&location));
            (status, [(CONTENT_TYPE, "text/html; charset=utf-8"), (LOCATION, location.as_str())], body)
                .into_response()
        } else {
            (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, location.as_str())]).into_response()
        })
    }
}

fn is_served(item: &PathItem, method: &Method) -> bool {
    match *method {
        Method::GET | Method::HEAD => item.get.is_some(),
        Method::POST => item.post.is_some(),
        Method::PUT => item.put.is_some(),
        Method::DELETE => item.delete.is_some(),
        _ => false,
    }
}

/// True if the path has the pattern's segments; `{name}` stands for one that is not empty.
fn matches(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    pattern.split('/').all(|part| {
        segments
            .next()
            .is_some_and(|segment| if part.starts_with('{') { !segment.is_empty() } else { part == segment })
    }) && segments.next().is_none()
}

/// Text within an attribute of HTML; a URI holds no angle brackets.
fn escaped(uri: &str) -> String {
    uri.replace('&', "&amp;").replace('"', "&#34;").replace('\'', "&#39;")
}
