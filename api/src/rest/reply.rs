//! Answers: JSON as Fn's server writes it, and pages of lists.

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use kiln_shared::model::go_json;
use serde::Serialize;
use utoipa::ToSchema;

pub(super) const JSON: &str = "application/json; charset=utf-8";
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// A JSON body, without a line feed after it.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        ([(CONTENT_TYPE, JSON)], go_json(&self.0)).into_response()
    }
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct List<T> {
    /// Where the next page begins; absent on a page that is not full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_cursor: Option<String>,
    /// The items.
    pub(super) items: Vec<T>,
}

impl<T> List<T> {
    /// A page of at most `items_max`, whose last item `cursor` names.
    pub(super) fn new(items: Vec<T>, items_max: u32, cursor: impl Fn(&T) -> String) -> Self {
        let full = items.len() >= items_max as usize;
        Self { next_cursor: items.last().filter(|_| full).map(cursor), items }
    }
}

/// 204 as Fn's server sends it.
pub(super) fn deleted() -> Response {
    (StatusCode::NO_CONTENT, [(CONTENT_TYPE, TEXT)]).into_response()
}
