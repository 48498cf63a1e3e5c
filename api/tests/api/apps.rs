//! `/v2/apps`.

use serde_json::json;

use crate::support::Api;

#[tokio::test]
async fn an_app_is_created_read_listed_and_deleted() {
    let api = Api::new().await;
    let created = api.post("/v2/apps", &json!({"name": "a1", "config": {"K": "V"}})).await.ok();
    let id = created.text("/id");
    assert_eq!(api.get(&format!("/v2/apps/{id}")).await, created);
    assert_eq!(api.get("/v2/apps").await.ok().names(), ["a1"]);
    let gone = api.delete(&format!("/v2/apps/{id}")).await;
    assert_eq!((gone.status, gone.body.as_str()), (204, ""));
    api.get(&format!("/v2/apps/{id}")).await.refused(404, "App not found");
    let text = serde_json::to_string(&created.json()).expect("JSON");
    let created_at = created.text("/created_at");
    assert_eq!(
        text,
        format!(
            r#"{{"id":"{id}","name":"a1","config":{{"K":"V"}},"created_at":"{created_at}","updated_at":"{created_at}"}}"#
        )
    );
    assert_eq!(created_at.len(), "2018-09-30T11:22:33.444Z".len());
}
