//! Pages, cursors and filters of lists (`spec/api-v2.md`, part 1).

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use crate::support::Api;

/// All pages of a list; the names of each.
async fn pages(api: &Api, path: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut next = path.to_owned();
    loop {
        let page = api.get(&next).await.ok();
        pages.push(page.names());
        match page.json().get("next_cursor") {
            Some(cursor) => next = format!("{path}&cursor={}", cursor.as_str().expect("a text")),
            None => return pages,
        }
        assert!(pages.len() < 1000, "the list does not end");
    }
}

#[tokio::test]
async fn a_full_page_has_a_cursor_even_if_nothing_follows() {
    let api = Api::new().await;
    for name in ["b13127", "a", "c"] {
        api.app(name).await;
    }
    let page = api.get("/v2/apps?per_page=2").await.ok();
    assert_eq!(
        (page.names(), page.text("/next_cursor")),
        (vec!["a".into(), "b13127".into()], "YjEzMTI3".into())
    );
    assert!(page.body.starts_with(r#"{"next_cursor":"YjEzMTI3","items":[{"#), "{page:?}");
    assert_eq!(pages(&api, "/v2/apps?per_page=3").await, [vec!["a", "b13127", "c"], vec![]]);
    assert_eq!(pages(&api, "/v2/apps?per_page=2").await, [vec!["a", "b13127"], vec!["c"]]);
}

#[tokio::test]
async fn page_sizes_are_mended() {
    let api = Api::new().await;
    for number in 0..101 {
        api.app(&format!("a{number:03}")).await;
    }
    for (query, count) in [
        ("", 30),
        ("?per_page=0", 30),
        ("?per_page=-5", 30),
        ("?per_page=x", 30),
        ("?per_page=1", 1),
        ("?per_page=100", 100),
        ("?per_page=101", 100),
        ("?per_page=99999999999999999999", 30),
        ("?per_page=5000000000", 100),
        ("?per_page=2&per_page=3", 2),
        ("?per_page=7&limit=1&sort_by=x", 7),
    ] {
        assert_eq!(api.get(&format!("/v2/apps{query}")).await.ok().names().len(), count, "{query}");
    }
}

#[tokio::test]
async fn names_filter_exactly() {
    let api = Api::new().await;
    for name in ["a", "ab", "A", "a_b"] {
        api.app(name).await;
    }
    for (query, names) in [
        ("name=a", vec!["a"]),
        ("name=ab", vec!["ab"]),
        ("name=a%25", vec![]),
        ("name=A", vec!["A"]),
        ("name=zz", vec![]),
    ] {
        assert_eq!(api.get(&format!("/v2/apps?{query}")).await.ok().names(), names, "{query}");
    }
    assert_eq!(api.get("/v2/apps?name=").await.ok().names().len(), 4);
    let app = api.post("/v2/apps", &json!({"name": "fns"})).await.ok().text("/id");
    api.function(&app, "a+b").await;
    assert_eq!(api.get(&format!("/v2/fns?app_id={app}&name=a%2Bb")).await.ok().names(), ["a+b"]);
}

#[tokio::test]
async fn a_cursor_that_is_none_is_refused() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let function = api.function(&app, "f").await;
    for list in [
        "/v2/apps?".to_owned(),
        format!("/v2/fns?app_id={app}&"),
        format!("/v2/triggers?app_id={app}&"),
        format!("/v2/fns/{function}/calls?"),
    ] {
        for cursor in ["%21", "a", "YjEzMTI3=", "_w"] {
            api.get(&format!("{list}cursor={cursor}")).await.refused(400, "Invalid cursor");
        }
        assert_eq!(api.get(&format!("{list}cursor=")).await.status, 200);
    }
}

#[tokio::test]
async fn triggers_of_one_name_are_not_lost_between_pages() {
    let api = Api::new().await;
    let app = api.app("a").await;
    for number in 0..5 {
        let function = api.function(&app, &format!("f{number}")).await;
        api.trigger(&app, &function, "http", &format!("/{number}")).await;
        api.trigger(&app, &function, &format!("t{number}"), &format!("/t{number}")).await;
    }
    let pages = pages(&api, &format!("/v2/triggers?app_id={app}&per_page=2")).await;
    let names: Vec<String> = pages.concat();
    assert_eq!(names, ["http", "http", "http", "http", "http", "t0", "t1", "t2", "t3", "t4"]);
    // Fn's own cursor is the name alone.
    let after = api.get(&format!("/v2/triggers?app_id={app}&cursor=aHR0cA")).await.ok().names();
    assert_eq!(after, ["t0", "t1", "t2", "t3", "t4"]);
}

#[tokio::test]
async fn a_page_after_a_deleted_item_goes_on_behind_it() {
    let api = Api::new().await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(api.app(name).await);
    }
    let page = api.get("/v2/apps?per_page=2").await.ok();
    assert_eq!(api.delete(&format!("/v2/apps/{}", ids[1])).await.status, 204);
    let next = api.get(&format!("/v2/apps?per_page=2&cursor={}", page.text("/next_cursor"))).await.ok();
    assert_eq!(next.names(), ["c"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Pages of any size give every item once, in the order of names.
    #[test]
    fn pages_are_the_list(
        names in prop::collection::btree_set("[a-zA-Z0-9_äß字-]{1,12}", 0..12),
        per_page in 1_usize..6,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let api = Api::new().await;
            for name in &names {
                api.app(name).await;
            }
            let pages = pages(&api, &format!("/v2/apps?per_page={per_page}")).await;
            prop_assert!(pages.iter().rev().skip(1).all(|page| page.len() == per_page));
            let listed = pages.concat();
            prop_assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), names.clone());
            prop_assert_eq!(listed, names.into_iter().collect::<Vec<_>>());
            Ok(())
        })?;
    }
}
