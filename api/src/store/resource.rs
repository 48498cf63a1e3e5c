//! Apps, functions and triggers as rows: the columns that queries need, and the whole as a JSON document.
//!
//! A document instead of a column per field: a new field needs no migration, and one set of statements serves
//! all three kinds. The cost is that SQL cannot filter by the other fields, which no API does.

use kiln_shared::model::{ApiError, App, FunctionResource, Trigger, TriggerType};
use sea_query::{Cond, Expr, ExprTrait, Order, Query, SelectStatement, SimpleExpr};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::db::Session;
use super::{Page, StoreError};

/// A resource that is stored as a row.
pub(crate) trait Resource: Serialize + DeserializeOwned {
    /// The table.
    const TABLE: &'static str;
    /// The word for it in the feed.
    const KIND: &'static str;
    /// The refusal of an id that names none.
    const NOT_FOUND: ApiError;
    /// Its columns without `document`; `id` first.
    const COLUMNS: &'static [&'static str];
    /// The values of [`Self::COLUMNS`].
    fn values(&self) -> Vec<SimpleExpr>;
    /// Its id.
    fn id(&self) -> &str;
    /// The whole as JSON.
    fn document(&self) -> String {
        serde_json::to_string(self).expect("resources have text keys only")
    }
}

impl Resource for App {
    const TABLE: &'static str = "apps";
    const KIND: &'static str = "app";
    const NOT_FOUND: ApiError = ApiError::AppNotFound;
    const COLUMNS: &'static [&'static str] = &["id", "name"];

    fn values(&self) -> Vec<SimpleExpr> {
        vec![self.id.as_str().into(), self.name.as_str().into()]
    }

    fn id(&self) -> &str {
        self.id.as_str()
    }
}

impl Resource for FunctionResource {
    const TABLE: &'static str = "fns";
    const KIND: &'static str = "fn";
    const NOT_FOUND: ApiError = ApiError::FnNotFound;
    const COLUMNS: &'static [&'static str] = &["id", "app_id", "name"];

    fn values(&self) -> Vec<SimpleExpr> {
        vec![self.id.as_str().into(), self.app_id.as_str().into(), self.name.as_str().into()]
    }

    fn id(&self) -> &str {
        self.id.as_str()
    }
}

impl Resource for Trigger {
    const TABLE: &'static str = "triggers";
    const KIND: &'static str = "trigger";
    const NOT_FOUND: ApiError = ApiError::TriggerNotFound;
    const COLUMNS: &'static [&'static str] = &["id", "app_id", "fn_id", "name", "kind", "source"];

    fn values(&self) -> Vec<SimpleExpr> {
        vec![
            self.id.as_str().into(),
            self.app_id.as_str().into(),
            self.fn_id.as_str().into(),
            self.name.as_str().into(),
            self.kind.as_str().into(),
            source_column(self).into(),
        ]
    }

    fn id(&self) -> &str {
        self.id.as_str()
    }
}

/// What is unique within app and kind: a path; but of schedules many may have one cron line.
pub(crate) fn source_column(trigger: &Trigger) -> &str {
    match trigger.kind {
        TriggerType::Http => &trigger.source,
        TriggerType::Schedule => trigger.id.as_str(),
    }
}

/// A query of whole resources. Its rows are `(id, document)`.
pub(crate) fn documents<R: Resource>() -> SelectStatement {
    Query::select().columns(["id", "document"]).from(R::TABLE).to_owned()
}

/// Restricts `query` to a page, in the order of names and, where these are not unique, ids.
pub(crate) fn paginate(mut query: SelectStatement, page: &Page) -> SelectStatement {
    if let Some(name) = &page.name {
        query.and_where(Expr::col("name").eq(name.as_str()));
    }
    if let Some(after) = &page.after {
        let mut later = Cond::any().add(Expr::col("name").gt(after.name.as_str()));
        if let Some(id) = &after.id {
            let same = Expr::col("name").eq(after.name.as_str());
            later = later.add(same.and(Expr::col("id").gt(id.as_str())));
        }
        query.cond_where(later);
    }
    query.order_by("name", Order::Asc).order_by("id", Order::Asc).limit(u64::from(page.items_max));
    query
}

fn decode<R: Resource>((id, document): (String, String)) -> Result<R, StoreError> {
    serde_json::from_str(&document).map_err(|source| StoreError::Corrupt { kind: R::KIND, id, source })
}

impl Session {
    /// All resources of a query made with [`documents`].
    pub(crate) async fn resources<R: Resource>(
        &mut self,
        query: &SelectStatement,
    ) -> Result<Vec<R>, StoreError> {
        self.all(query).await?.into_iter().map(decode).collect()
    }

    /// The first resource of a query made with [`documents`].
    pub(crate) async fn find<R: Resource>(
        &mut self,
        query: &SelectStatement,
    ) -> Result<Option<R>, StoreError> {
        self.first(query).await?.map(decode).transpose()
    }

    /// The resource with this id.
    pub(crate) async fn get<R: Resource>(&mut self, id: &str) -> Result<R, StoreError> {
        let query = documents::<R>().and_where(Expr::col("id").eq(id)).to_owned();
        self.find(&query).await?.ok_or(StoreError::Refused(R::NOT_FOUND))
    }

    /// Adds a resource.
    pub(crate) async fn insert<R: Resource>(&mut self, resource: &R) -> Result<(), StoreError> {
        let mut values = resource.values();
        values.push(resource.document().into());
        let insert = Query::insert()
            .into_table(R::TABLE)
            .columns(R::COLUMNS.iter().copied().chain(["document"]))
            .values_panic(values)
            .to_owned();
        self.execute(&insert).await.map(drop)
    }

    /// Writes all of a resource that is there.
    pub(crate) async fn replace<R: Resource>(&mut self, resource: &R) -> Result<(), StoreError> {
        let columns = R::COLUMNS.iter().copied().zip(resource.values()).skip(1);
        let update = Query::update()
            .table(R::TABLE)
            .values(columns)
            .value("document", resource.document())
            .and_where(Expr::col("id").eq(resource.id()))
            .to_owned();
        self.execute(&update).await.map(drop)
    }

    /// Removes the resources where `column` is `value`; their ids.
    pub(crate) async fn remove<R: Resource>(
        &mut self,
        column: &'static str,
        value: &str,
    ) -> Result<Vec<String>, StoreError> {
        let condition = Expr::col(column).eq(value);
        let query = Query::select()
            .column("id")
            .from(R::TABLE)
            .and_where(condition.clone())
            .order_by("id", Order::Asc)
            .to_owned();
        let ids: Vec<(String,)> = self.all(&query).await?;
        let delete = Query::delete().from_table(R::TABLE).and_where(condition).to_owned();
        self.execute(&delete).await?;
        Ok(ids.into_iter().map(|(id,)| id).collect())
    }
}
