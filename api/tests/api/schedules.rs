//! Triggers of the type `schedule`, and how far they were fired.

use jiff::{SignedDuration, Timestamp};
use kiln_api::Claimed;
use kiln_shared::ids::TriggerId;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Api, with};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn schedule(app: &str, function: &str, name: &str) -> Value {
    json!({"app_id": app, "fn_id": function, "name": name, "type": "schedule", "source": "0 4 * * *"})
}

async fn stored(api: &Api) -> TriggerId {
    let app = api.app("a").await;
    let function = api.function(&app, "f").await;
    let made = api.post("/v2/triggers", &schedule(&app, &function, "s")).await.ok();
    made.text("/id").parse().expect("an id")
}

#[tokio::test]
async fn a_schedule_is_created_shows_its_next_tick_and_is_updated() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let function = api.function(&app, "f").await;
    let zone = json!({"annotations": {"kiln.dev/time-zone": "Europe/Vienna", "kiln.dev/misfire": "all"}});
    let made = api.post("/v2/triggers", &with(&schedule(&app, &function, "s"), &zone)).await.ok();
    let path = format!("/v2/triggers/{}", made.text("/id"));
    let shown = api.get(&path).await.ok();
    assert_eq!(shown.json()["annotations"]["fnproject.io/trigger/httpEndpoint"], Value::Null);
    let next: Timestamp = shown.text("/annotations/kiln.dev~1next-tick").parse().expect("a time");
    assert!(next > Timestamp::now() && next < Timestamp::now() + SignedDuration::from_hours(26));
    assert_eq!(api.get(&format!("/v2/triggers?app_id={app}")).await.ok().json()["items"][0], shown.json());
    // What was shown can be sent back.
    assert_eq!(api.put(&path, &shown.json()).await.ok().text("/updated_at"), shown.text("/updated_at"));
    let changed = api.put(&path, &json!({"source": "@hourly"})).await.ok();
    assert_eq!(changed.text("/source"), "@hourly");
    assert_eq!(changed.text("/annotations/kiln.dev~1time-zone"), "Europe/Vienna");
}

#[tokio::test]
async fn a_bad_schedule_is_refused_by_its_field() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let function = api.function(&app, "f").await;
    let base = schedule(&app, &function, "s");
    let annotation = |key: &str, value: Value| json!({"annotations": {key: value}});
    let prefix = "Invalid annotation value, kiln.dev/";
    for (change, words) in [
        (json!({"source": ""}), "Missing Trigger Source".to_owned()),
        (json!({"source": "/path"}), "Invalid source of a schedule: ".to_owned()),
        (json!({"source": "* * *"}), "Invalid source of a schedule: ".to_owned()),
        (
            json!({"source": "0 0 31 2 *"}),
            "Invalid source of a schedule: such a day never comes; ".to_owned(),
        ),
        (annotation("kiln.dev/time-zone", json!("Mars/Base")), format!("{prefix}time-zone must be ")),
        (annotation("kiln.dev/jitter-seconds", json!(4000)), format!("{prefix}jitter-seconds must be ")),
        (
            annotation("kiln.dev/misfire", json!("twice")),
            format!("{prefix}misfire must be skip, once or all"),
        ),
    ] {
        let refused = api.post("/v2/triggers", &with(&base, &change)).await;
        assert_eq!(refused.status, 400, "{change}");
        assert!(refused.text("/message").starts_with(&words), "{refused:?}");
    }
    let made = api.post("/v2/triggers", &base).await.ok();
    let refused = api.put(&format!("/v2/triggers/{}", made.text("/id")), &json!({"source": "often"})).await;
    assert_eq!(refused.status, 400);
    // To a trigger of the type http nothing of this applies.
    let http = json!({"name": "h", "type": "http", "source": "0 4 * * *"});
    let refused = api.post("/v2/triggers", &with(&base, &http)).await;
    refused.refused(400, "Missing Trigger Source Prefix '/'");
}

#[tokio::test]
async fn many_schedules_may_have_one_cron_line_but_not_one_name() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let (f, g) = (api.function(&app, "f").await, api.function(&app, "g").await);
    for (function, name) in [(&f, "s"), (&g, "s"), (&f, "t")] {
        api.post("/v2/triggers", &schedule(&app, function, name)).await.ok();
    }
    api.post("/v2/triggers", &schedule(&app, &f, "s")).await.refused(409, "Trigger already exists");
    let path = format!("/v2/runner/apps/{app}/triggerBySource/schedule/0%204%20*%20*%20*");
    api.get(&path).await.refused(404, "Trigger not found");
}

#[tokio::test]
async fn of_all_who_ask_for_ticks_one_gets_them() {
    let api = Api::new().await;
    let id = stored(&api).await;
    let mut asking = JoinSet::new();
    for number in 0..8 {
        let catalog = api.catalog.clone();
        let ask = async move { catalog.claim_ticks(&[(id, at(60))], &format!("b{number}"), at(61)).await };
        asking.spawn(ask);
    }
    let answers: Vec<_> =
        asking.join_all().await.into_iter().map(|answer| answer.expect("answers")).collect();
    assert_eq!(answers.iter().filter(|answer| ***answer == [Claimed::Given(None)]).count(), 1);
    assert_eq!(answers.iter().filter(|answer| ***answer == [Claimed::Held]).count(), 7);
}

#[tokio::test]
async fn ticks_move_forward_only_and_only_by_the_hand_of_who_holds_them() {
    let api = Api::new().await;
    let (catalog, id) = (&api.catalog, stored(&api).await);
    let claim = async |tick, holder, now| {
        catalog.claim_ticks(&[(id, at(tick))], holder, at(now)).await.expect("answers")[0]
    };
    let fired = async |tick, holder| catalog.ticks_fired(&[(id, at(tick))], holder).await.expect("stored");
    assert_eq!(claim(60, "a", 61).await, Claimed::Given(None));
    // The same one asks again: it failed in between.
    assert_eq!(claim(60, "a", 62).await, Claimed::Given(None));
    fired(60, "b").await;
    assert_eq!(claim(60, "b", 63).await, Claimed::Held);
    fired(60, "a").await;
    assert_eq!(claim(60, "b", 63).await, Claimed::Fired(at(60)));
    assert_eq!(claim(120, "b", 121).await, Claimed::Given(Some(at(60))));
    fired(0, "b").await;
    // The claim of a dead balancer ends, and so does one from a clock that was wrong.
    assert_eq!(claim(120, "a", 137).await, Claimed::Given(Some(at(60))));
    assert_eq!(claim(180, "b", 181).await, Claimed::Given(Some(at(60))));
    assert_eq!(claim(180, "a", 100).await, Claimed::Given(Some(at(60))));
    fired(120, "b").await;
    assert_eq!(claim(120, "b", 181).await, Claimed::Given(Some(at(60))), "it was another's by then");
}

#[tokio::test]
async fn a_schedule_that_is_gone_takes_what_was_kept_of_it_along() {
    let api = Api::new().await;
    let (catalog, id) = (&api.catalog, stored(&api).await);
    let other = TriggerId::generate();
    let claims = [(id, at(60)), (other, at(60))];
    let answers = catalog.claim_ticks(&claims, "a", at(61)).await.expect("answers");
    assert_eq!(answers, [Claimed::Given(None), Claimed::Gone]);
    api.delete(&format!("/v2/triggers/{id}")).await;
    let answers = catalog.claim_ticks(&claims[..1], "a", at(62)).await.expect("answers");
    assert_eq!(answers, [Claimed::Gone]);
}
