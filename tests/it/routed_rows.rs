//! What the ledger writes of requests that were answered by the cache or by other servers.

use crate::support::cloud::{Act, Cloud, SSE, answer, head, text};
use crate::support::governed::{Governed, PRICE};
use crate::support::routed::{route, upstream};
use crate::support::{MODEL, PATIENCE, chat_body};
use hearth::gateway::{Price, RouteConfig};
use serde_json::{Value, json};

const THERE: Price = Price { input: 3_000_000, cached_input: 0, output: 11_000_000 };

/// `(target, class, in, out, cost)` of the last request's attempts.
async fn attempts(house: &Governed) -> Vec<(String, String, i64, i64, i64)> {
    let read = house.books.store().read(|conn| {
        let sql = "SELECT target, class, in_tok, out_tok, cost_nusd FROM attempt
                   WHERE request_id = (SELECT id FROM request ORDER BY rowid DESC LIMIT 1) ORDER BY n";
        let mut rows = conn.prepare(sql)?;
        let of = |row: &rusqlite::Row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
        let all: rusqlite::Result<Vec<_>> = rows.query_map([], of)?.collect();
        Ok(all?)
    });
    read.await.expect("rows can be read")
}

/// A model here, `cloud`, and `dead`; a key that may leave.
async fn house(cloud: &Cloud, dead: &Cloud) -> (Governed, String) {
    let (cloud, dead) = (cloud.base_url(), dead.base_url());
    let house = Governed::with(move |setup, _| {
        setup.gateway.price = PRICE;
        let routing = &mut setup.gateway.routing;
        (routing.may_leave, routing.cache.enabled) = (true, true);
        let priced = |name: &str, url: &str| {
            let mut config = upstream(name, url);
            config.price = THERE;
            config
        };
        routing.upstreams = vec![priced("cloud", &cloud), priced("dead", &dead)];
        let unsure = |name: &str, to: &str| RouteConfig { min_logprob: Some(-1.0), ..route(name, &[MODEL, to]) };
        routing.routes = vec![route("far", &["dead", "cloud"]), unsure("unsure", "cloud"), unsure("alone", "dead")];
    })
    .await;
    let (key, _) = house.key(json!({ "egress": "allowed" })).await;
    (house, key)
}

fn ask(model: &str, more: Value) -> Value {
    chat_body("/count 3", crate::support::with(json!({ "model": model }), more))
}

#[tokio::test]
async fn what_others_answered_is_charged_at_their_price_try_by_try() {
    let cloud = Cloud::always(vec![Act::Send(answer(&["from", " afar"]).into())]).await;
    let dead = Cloud::always(vec![Act::Send(head(500, ""))]).await;
    let (house, key) = house(&cloud, &dead).await;
    let path = "/v1/chat/completions";
    for (n, stream) in [(1, false), (2, true)] {
        assert_eq!(house.send(&key, path, ask("far", json!({ "stream": stream }))).await.status, 200);
        let rows = house.rows(n).await;
        let row = rows.last().expect("a row");
        assert_eq!((row.served_by.as_deref(), row.model.as_deref()), (Some("cloud"), Some("cloud")));
        assert_eq!(
            (row.usage_source.as_str(), row.finish.as_str(), row.cache.as_deref()),
            ("upstream", "stop", Some("bypass"))
        );
        assert_eq!((row.in_tok, row.out_tok, row.cost_nusd), (11, 2, THERE.cost(11, 0, 2)));
        let tried = [
            ("dead".to_owned(), "transient".to_owned(), 0, 0, 0),
            ("cloud".to_owned(), "ok".to_owned(), 11, 2, THERE.cost(11, 0, 2)),
        ];
        assert_eq!(attempts(&house).await, tried);
    }
    // Both answers are paid for.
    assert_eq!(house.send(&key, path, ask("unsure", json!({}))).await.content(), "from afar");
    let rows = house.rows(3).await;
    let tried = attempts(&house).await;
    assert_eq!((tried[0].0.as_str(), tried[0].1.as_str(), tried[0].3), (MODEL, "replaced", 6));
    assert_eq!((tried[1].0.as_str(), tried[1].1.as_str(), tried[1].3), ("cloud", "ok", 2));
    let row = &rows[2];
    assert_eq!((row.in_tok, row.out_tok), (u64::try_from(tried[0].2 + 11).expect("a count"), 8));
    assert_eq!((row.cost_nusd, row.finish.as_str()), (tried[0].4 + tried[1].4, "stop"));
    assert!(tried[0].4 > 0 && tried[1].4 > 0);
    // Nobody better: one answer, given and paid for once.
    assert_eq!(house.send(&key, path, ask("alone", json!({}))).await.content(), "1 2 3");
    let rows = house.rows(4).await;
    let row = &rows[3];
    assert_eq!((row.served_by.as_deref(), row.out_tok, row.usage_source.as_str()), (Some("local"), 6, "engine"));
    assert_eq!(row.cost_nusd, PRICE.cost(row.in_tok, row.cached_tok, 6));
    // Reports tell the tries, and whom they were for.
    let named = ask("alone", json!({ "user": "ann" }));
    assert_eq!(house.send(&key, path, named).await.content(), "1 2 3");
    let total: f64 = house.rows(5).await.iter().map(|row| row.cost_nusd as f64 / 1e9).sum();
    let tries = house.look("/global/spend/report?group_by=target").await;
    let tries = tries.as_array().expect("lines");
    let n = |target: &str, class: &str| {
        tries
            .iter()
            .find(|line| line["target"] == target && line["class"] == class)
            .map(|line| line["attempts"].clone())
    };
    assert_eq!((n("dead", "transient"), n("cloud", "ok")), (Some(json!(4)), Some(json!(3))), "{tries:?}");
    assert_eq!(n(MODEL, "replaced"), Some(json!(3)));
    let sum: f64 = tries.iter().filter_map(|line| line["spend"].as_f64()).sum();
    assert!((sum - total).abs() < 1e-12, "{sum} {total}");
    let users = house.look("/global/spend/report?group_by=end_user").await;
    let of_ann = users.as_array().expect("lines").iter().find(|line| line["end_user"] == "ann").expect("a line");
    assert_eq!((&of_ann["requests"], &of_ann["completion_tokens"]), (&json!(1), &json!(6)));
    let logs = house.look("/spend/logs?page_size=1&page=5").await;
    let first: Vec<(&Value, &Value)> = logs[0]["attempts"]
        .as_array()
        .expect("attempts")
        .iter()
        .map(|attempt| (&attempt["target"], &attempt["class"]))
        .collect();
    assert_eq!(first, [(&json!("dead"), &json!("transient")), (&json!("cloud"), &json!("ok"))]);
    house.is_verified().await;
    house.stop().await;
}

#[tokio::test]
async fn a_hit_has_its_row_and_costs_nothing() {
    let (cloud, dead) = (Cloud::always(vec![]).await, Cloud::always(vec![]).await);
    let (house, key) = house(&cloud, &dead).await;
    for stream in [false, true] {
        let body = ask(MODEL, json!({ "temperature": 0, "stream": stream }));
        assert_eq!(house.send(&key, "/v1/chat/completions", body).await.status, 200);
    }
    let rows = house.rows(2).await;
    let [live, hit] = rows.as_slice() else { unreachable!("two rows") };
    assert_eq!((live.cache.as_deref(), live.served_by.as_deref()), (Some("miss"), Some("local")));
    assert_eq!((hit.cache.as_deref(), hit.served_by.as_deref()), (Some("hit"), Some("cache")));
    assert_eq!((hit.usage_source.as_str(), hit.finish.as_str(), hit.status), ("cache", "stop", 200));
    assert_eq!((hit.in_tok, hit.out_tok, hit.cost_nusd), (live.in_tok, live.out_tok, 0));
    assert!(live.cost_nusd > 0);
    house.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_left_is_charged_by_what_was_seen() {
    let cloud = Cloud::always(vec![Act::Send((SSE.to_owned() + &text("x") + &text("y")).into()), Act::Hang]).await;
    let dead = Cloud::always(vec![Act::Send(head(500, ""))]).await;
    let (house, key) = house(&cloud, &dead).await;
    let request = house.post(&key, "/v1/chat/completions", &ask("far", json!({ "stream": true })));
    let mut response = request.send().await.expect("an answer");
    assert!(response.chunk().await.expect("it lives").is_some());
    drop(response);
    let rows = tokio::time::timeout(PATIENCE, house.rows(1)).await.expect("its row");
    let row = &rows[0];
    assert_eq!((row.finish.as_str(), row.usage_source.as_str(), row.out_tok), ("aborted", "estimated", 2));
    assert_eq!(row.cost_nusd, THERE.cost(row.in_tok, 0, 2));
    assert_eq!(attempts(&house).await[1].1, "cancelled");
    assert_eq!(cloud.n_left(), 1);
    house.stop().await;
}
