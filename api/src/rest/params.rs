//! Query parameters and cursors of lists.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kiln_shared::model::ApiError;

use crate::store::{After, Page};

const PER_PAGE_DEFAULT: u32 = 30;
const PER_PAGE_MAX: u32 = 100;

/// Stands between name and id in a cursor; no name contains it.
const SEPARATOR: char = '\0';

/// The parameters of every list by name, for the OpenAPI document; [`Params`] reads them.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct PageParams {
    /// Only the item of exactly this name.
    name: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// 1 to 100; 30 if absent.
    per_page: Option<u32>,
}

/// The query's parameters. Of a repeated one the first counts, an empty one counts as absent.
pub(super) struct Params(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        // Pairs of texts always fit; a query that is not even that has no parameters.
        Ok(Self(Query::try_from_uri(&parts.uri).map_or_else(|_| Vec::new(), |Query(pairs)| pairs)))
    }
}

impl Params {
    /// The value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// `per_page`: 30 where it is absent or makes no sense, 100 at most.
    pub(super) fn items_max(&self) -> u32 {
        let given = self.get("per_page").and_then(|text| text.parse::<i64>().ok()).filter(|count| *count > 0);
        given.map_or(PER_PAGE_DEFAULT, |count| u32::try_from(count).unwrap_or(u32::MAX).min(PER_PAGE_MAX))
    }

    /// What `cursor` says in clear.
    pub(super) fn cursor(&self) -> Result<Option<String>, ApiError> {
        self.get("cursor").map(decode).transpose()
    }

    /// The page of a list by name.
    pub(super) fn page(&self) -> Result<Page, ApiError> {
        let after = self.cursor()?.map(|cursor| match cursor.split_once(SEPARATOR) {
            Some((name, id)) => After { name: name.to_owned(), id: Some(id.to_owned()) },
            None => After { name: cursor, id: None },
        });
        Ok(Page { name: self.get("name").map(str::to_owned), after, items_max: self.items_max() })
    }
}

fn decode(cursor: &str) -> Result<String, ApiError> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| ApiError::InvalidCursor)?;
    String::from_utf8(bytes).map_err(|_| ApiError::InvalidCursor)
}

/// A cursor after the item of this name or id. Fn's own form.
pub(super) fn cursor(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(last)
}

/// A cursor after this item in a list whose names are not unique.
pub(super) fn cursor_with_id(name: &str, id: &str) -> String {
    cursor(&format!("{name}{SEPARATOR}{id}"))
}
