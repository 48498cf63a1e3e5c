//! A database that another version of Kiln made: a newer one is left alone, an older one brought up to date.

use std::path::Path;

use kiln_api::{Catalog, OpenError};
use kiln_shared::model::{AppInput, Config};
use sqlx::migrate::Migrator;

use crate::support::Api;

/// What a newer version leaves behind.
pub(crate) const NEWER: &str = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
    VALUES (9999, 'newer', true, 'x', 0)";
/// What makes the first step another one.
pub(crate) const OTHER: &str = "UPDATE _sqlx_migrations SET checksum = 'x' WHERE version = 1";

/// The text of the refusal; it names the database, and nothing was changed.
async fn refusal(url: &str) -> (OpenError, String) {
    let error = Catalog::open(url).await.expect_err("it is left alone");
    let text = error.to_string();
    assert!(!text.contains('\n') && !text.contains("secret"), "{text}");
    (error, text)
}

pub(crate) async fn a_newer_database_is_left_alone(url: &str, run: impl AsyncFn(&str)) {
    Catalog::open(url).await.expect("opens").close().await;
    run(NEWER).await;
    let (error, text) = refusal(url).await;
    assert!(matches!(error, OpenError::Newer { step: 9999, known: 1.., .. }), "{error:?}");
    assert!(
        text.contains("newer schema (step 9999)")
            && text.contains(env!("CARGO_PKG_VERSION"))
            && text.contains("use the version of Kiln that wrote it"),
        "{text}"
    );
}

pub(crate) async fn a_database_with_another_history_is_left_alone(url: &str, run: impl AsyncFn(&str)) {
    Catalog::open(url).await.expect("opens").close().await;
    run(OTHER).await;
    let (error, text) = refusal(url).await;
    assert!(matches!(error, OpenError::Other { step: 1, .. }), "{error:?}");
    assert!(text.contains("use the version of Kiln that wrote it, or another database"), "{text}");
}

/// The schema as it was at first, of the migrations in a folder.
pub(crate) async fn oldest(folder: &str) -> Migrator {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(folder);
    let all = Migrator::new(folder).await.expect("migrations");
    Migrator::with_migrations(all.iter().take(1).cloned().collect())
}

/// `insert` puts a row in a database of the oldest schema.
pub(crate) async fn an_older_database_is_brought_up_to_date(url: &str, insert: impl AsyncFn(&str)) {
    let donor = Catalog::open("sqlite://:memory:").await.expect("opens");
    let config = Config::from([("K".to_owned(), "V".to_owned())]);
    let input = AppInput { name: "a".to_owned(), config, ..AppInput::default() };
    let app = donor.create_app(&input).await.expect("created");
    let document = serde_json::to_string(&app).expect("JSON");
    insert(&format!("INSERT INTO apps (id, name, document) VALUES ('{}', 'a', '{document}')", app.id)).await;
    let api = Api::open(url).await;
    assert_eq!(api.catalog.snapshot().await.expect("a snapshot").apps, std::slice::from_ref(&app));
    let function = api.function(app.id.as_str(), "f").await;
    api.trigger(app.id.as_str(), &function, "t", "/t").await;
    api.delete(&format!("/v2/apps/{}", app.id)).await;
    assert_eq!(api.get("/v2/apps").await.ok().names(), [""; 0]);
}
