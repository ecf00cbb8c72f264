//! Budgets of keys and teams over HTTP: never overspent, remembered over a restart, begun anew by an operator.

use crate::support::cloud::{Act, Cloud, answer, head};
use crate::support::governed::{Governed, PRICE};
use crate::support::routed::{route, upstream};
use crate::support::{MODEL, PATIENCE, chat_body, with};
use hearth::gateway::limits::LimitSets;
use hearth::gateway::{LimitSpec, NUSD, Price};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

async fn spent(governed: &Governed, id: &str) -> (i64, u64) {
    let rows = governed.books.store().read({
        let id = id.to_owned();
        move |conn| hearth::gateway::store::spent(conn, "key", &id, (0, i64::MAX))
    });
    rows.await.expect("rows can be read")
}

async fn in_folder(dir: &Path) -> Governed {
    Governed::with(|setup, config| {
        setup.gateway.price = PRICE;
        config.dir = dir.to_owned();
    })
    .await
}

/// T-B1: a budget of 10,000 tokens and 64 clients that race for it, streaming or not, with answers of any length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_do_not_overspend_a_budget() {
    let governed = Governed::with(|setup, _| {
        setup.engine.n_slots = 8;
        setup.engine.n_ctx = Some(16_384);
    })
    .await;
    let (key, id) = governed.key(json!({ "max_tokens_budget": 10_000 })).await;
    let client = |n: u64| {
        let (governed, key) = (&governed, &key);
        async move {
            let mut n_refused = 0;
            for round in 0..6 {
                let more =
                    json!({ "max_tokens": 20 + (n * 7 + round * 31) % 180, "stream": (n + round).is_multiple_of(3) });
                let text = if (n + round).is_multiple_of(2) { "/forever" } else { "/count 12" };
                let answer = governed.send(key, "/v1/chat/completions", chat_body(text, more)).await;
                if answer.status != 200 {
                    let (status, kind, code, _) = answer.error();
                    assert_eq!(
                        (status, kind.as_str(), code.as_deref()),
                        (429, "insufficient_quota", Some("insufficient_quota"))
                    );
                    assert_eq!((answer.header("x-should-retry"), answer.header("retry-after")), ("false", ""));
                    n_refused += 1;
                }
            }
            n_refused
        }
    };
    let refused: Vec<u32> = futures_util::future::join_all((0..64).map(client)).await;
    assert!(refused.iter().sum::<u32>() > 0, "they asked for more than there is");
    governed.server.idle().await;
    governed.books.store().flush().await;
    let (_, tokens) = spent(&governed, &id).await;
    assert!(tokens <= 10_000, "{tokens} tokens");
    // What the rows say is what the limiter says, and the rest of it can be spent to the last token.
    let left = 10_000 - tokens;
    let more = governed.send(&key, "/v1/chat/completions", chat_body("/forever", json!({ "max_tokens": 9_000 }))).await;
    assert_eq!(more.status, 429);
    if left > 100 {
        let rest = governed.send(&key, "/v1/chat/completions", chat_body("/forever", json!({}))).await;
        assert_eq!(rest.json()["usage"]["total_tokens"].as_u64(), Some(left), "{}", rest.text);
    }
    governed.stop().await;
}

/// T-B4: what was spent is spent after a restart, unless an operator says otherwise.
#[tokio::test]
async fn a_restart_forgets_nothing_of_a_budget() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let governed = in_folder(dir.path()).await;
    let (key, id) =
        governed.key(json!({ "max_budget": "0.00001", "budget_duration": "1d", "budget_calendar": true })).await;
    let chat = async |governed: &Governed, n: u32| {
        governed.send(&key, "/v1/chat/completions", chat_body("/forever", json!({ "max_tokens": n }))).await
    };
    let first = chat(&governed, 10).await;
    let usage = &first.json()["usage"];
    let n_prompt = usage["prompt_tokens"].as_u64().expect("a count");
    let cost = PRICE.cost(n_prompt, 0, 10);
    assert_eq!((first.status, spent(&governed, &id).await.0), (200, cost));
    governed.stop().await;
    let governed = in_folder(dir.path()).await;
    let budget = NUSD / 100_000;
    // One token of an answer costs 7 nano-USD: as many as are left fit, and one more does not.
    let n_left = u32::try_from((budget - cost - PRICE.cost(n_prompt, 0, 0)) / 7).expect("few");
    let over = chat(&governed, n_left + 1).await;
    assert_eq!(over.status, 429, "{n_left}: {}", over.text);
    assert_eq!(chat(&governed, n_left).await.status, 200);
    let refused = chat(&governed, 3000).await;
    let message = refused.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.starts_with("You exceeded your current quota: this key has a budget of $0.00001,"), "{message}");
    governed.act(&format!("/key/{id}/reset_spend"), json!({})).await;
    assert_eq!(chat(&governed, 100).await.status, 200, "an operator gave it anew");
    governed.stop().await;
}

#[tokio::test]
async fn a_team_shares_what_it_has_and_a_set_must_exist() {
    let governed = Governed::with(|setup, _| {
        let pro = LimitSpec { rpm: Some(3), ..Default::default() };
        setup.gateway.limits = LimitSets::new([("pro".to_owned(), pro)].into());
    })
    .await;
    governed.act("/team/new", json!({ "team_id": "t", "limits": "pro" })).await;
    let (one, _) = governed.key(json!({ "team_id": "t" })).await;
    let (two, _) = governed.key(json!({ "team_id": "t", "tpm_limit": 5000 })).await;
    assert_eq!(governed.chat(&one, "hi").await.header("x-ratelimit-remaining-requests"), "2");
    let second = governed.chat(&two, "hi").await;
    assert_eq!(second.header("x-ratelimit-remaining-requests"), "1");
    assert!(second.header("x-ratelimit-remaining-tokens").parse::<u64>().is_ok_and(|n| n < 5000));
    assert_eq!(governed.chat(&one, "hi").await.status, 200);
    let refused = governed.chat(&two, "hi").await;
    let message = refused.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(refused.status == 429 && message.contains("of this key's team on requests per min"), "{message}");
    assert_eq!(governed.row_of(&refused).await.finish, "refused");
    for (path, body) in [("/key/generate", json!({})), ("/team/new", json!({ "team_id": "u" }))] {
        let wrong = governed.act_as(&governed.master, path, with(body, json!({ "limits": "prp" }))).await;
        assert_eq!((path, wrong.error().0, wrong.error().3.as_deref()), (path, 400, Some("limits")));
    }
    let wrong = json!({ "max_budget": 1, "budget_duration": "1d", "budget_timezone": "Mars/Olympus" });
    assert_eq!(governed.act_as(&governed.master, "/key/generate", wrong).await.status, 400);
    governed.stop().await;
}

/// A client that leaves is charged for what was computed, and a queued request for nothing.
#[tokio::test]
async fn what_a_client_leaves_behind_is_counted_once() {
    let governed = Governed::with(|setup, _| {
        setup.engine.n_slots = 1;
        setup.scripted().step_us = 1000;
    })
    .await;
    let (key, id) = governed.key(json!({ "max_tokens_budget": 3_000, "max_parallel_requests": 2 })).await;
    let body = chat_body("/forever", json!({ "stream": true, "max_tokens": 1000 }));
    let mut running = governed.post(&key, "/v1/chat/completions", &body).send().await.expect("an answer");
    let mut text = String::new();
    while !text.contains("\"content\":\".") {
        text += &String::from_utf8_lossy(&running.chunk().await.expect("it lives").expect("a chunk"));
    }
    let waiting = governed.post(&key, "/v1/chat/completions", &body).send().await.expect("an answer");
    assert_eq!(waiting.status(), 200);
    drop(waiting);
    // Or it might have the slot for a moment.
    let since = Instant::now();
    while governed.server.engine.load().n_in_flight > 1 {
        assert!(since.elapsed() < PATIENCE, "it still waits");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(running);
    governed.server.idle().await;
    let rows = governed.rows(2).await;
    let tokens: Vec<u64> = rows.iter().map(|row| row.in_tok + row.out_tok).collect();
    assert!(tokens.contains(&0), "{rows:#?}");
    let sum: u64 = tokens.iter().sum();
    assert!(sum > 0 && sum < 1000, "{tokens:?}");
    assert_eq!(spent(&governed, &id).await.1, sum);
    // All the rest is there: nothing is reserved any more.
    let rest = governed.send(&key, "/v1/chat/completions", chat_body("/forever", json!({}))).await;
    assert_eq!(rest.json()["usage"]["total_tokens"].as_u64(), Some(3_000 - sum), "{}", rest.text);
    governed.stop().await;
}

/// Of several targets the one that the budget has room for answers; what a failed try reserved is given back.
#[tokio::test]
async fn a_budget_that_is_too_small_for_one_target_is_enough_for_another() {
    let cloud = Cloud::always(vec![Act::Send(answer(&["from", " afar"]).into())]).await;
    let dead = Cloud::always(vec![Act::Send(head(500, ""))]).await;
    let (here, there) = (cloud.base_url(), dead.base_url());
    let governed = Governed::with(move |setup, _| {
        setup.gateway.price = PRICE;
        let priced = |name: &str, url: &str| {
            let mut config = upstream(name, url);
            config.price = Price { input: 3_000_000, cached_input: 0, output: 11_000_000 };
            config
        };
        let routing = &mut setup.gateway.routing;
        routing.may_leave = true;
        routing.upstreams = vec![priced("cloud", &here), priced("dead", &there)];
        routing.routes = vec![route("far", &["cloud", MODEL]), route("lost", &["dead", "dead", "cloud"])];
    })
    .await;
    let key = async |max: &str| governed.key(json!({ "max_budget": max, "egress": "allowed" })).await;
    let ask = async |key: &str, model: &str| {
        let body = chat_body("/count 3", json!({ "model": model, "max_tokens": 50 }));
        governed.send(key, "/v1/chat/completions", body).await
    };
    let (poor, _) = key("0.0000005").await;
    let (rich, id) = key("0.0000015").await;
    let (broke, _) = key("0.0000003").await;
    assert_eq!(ask(&poor, "far").await.header("x-hearth-served-by"), "local");
    assert_eq!(ask(&rich, "far").await.header("x-hearth-served-by"), "cloud");
    let refused = ask(&broke, "far").await;
    assert_eq!((refused.status, refused.error().2.as_deref()), (429, Some("insufficient_quota")));
    // Two tries reserve as much as the key has; the third has room only because they gave it back.
    assert_eq!(ask(&rich, "lost").await.header("x-hearth-served-by"), "cloud");
    let rows = governed.rows(4).await;
    let cost: i64 = rows.iter().filter(|row| row.key_id.as_deref() == Some(&id)).map(|row| row.cost_nusd).sum();
    assert_eq!(spent(&governed, &id).await.0, cost);
    governed.stop().await;
}

/// A budget that two keys and a team share: 48 clients race for it, and it is never overspent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_teams_that_share_a_budget_do_not_overspend_it() {
    let governed = Governed::with(|setup, _| {
        setup.engine.n_slots = 8;
        setup.engine.n_ctx = Some(16_384);
    })
    .await;
    let made = governed.act("/budget/new", json!({ "budget_id": "shared", "max_tokens_budget": 6_000 })).await;
    assert_eq!((&made["budget_id"], &made["max_tokens_budget"]), (&json!("shared"), &json!(6_000)));
    governed.act("/team/new", json!({ "team_id": "t", "budget_id": "shared" })).await;
    let keys = [
        governed.key(json!({ "budget_id": "shared" })).await.0,
        governed.key(json!({ "budget_id": "shared", "max_tokens_budget": 1_000 })).await.0,
        governed.key(json!({ "team_id": "t" })).await.0,
        // Named twice, counted once.
        governed.key(json!({ "team_id": "t", "budget_id": "shared" })).await.0,
    ];
    let client = |n: u64| {
        let (governed, key) = (&governed, &keys[usize::try_from(n % 4).expect("few")]);
        async move {
            let mut n_refused = 0;
            for round in 0..5 {
                let more = json!({ "max_tokens": 20 + (n * 7 + round * 31) % 180, "stream": n.is_multiple_of(2) });
                let answer = governed.send(key, "/v1/chat/completions", chat_body("/forever", more)).await;
                n_refused += u32::from(answer.status == 429);
                assert!(matches!(answer.status, 200 | 429), "{}", answer.text);
            }
            n_refused
        }
    };
    let refused: Vec<u32> = futures_util::future::join_all((0..48).map(client)).await;
    assert!(refused.iter().sum::<u32>() > 0, "they asked for more than there is");
    governed.server.idle().await;
    governed.books.store().flush().await;
    let shown = governed.look("/budget/info?budget_id=shared").await;
    let spent = shown["spent_tokens"].as_u64().expect("a count");
    assert!(spent <= 6_000, "{shown}");
    // The rest can be spent, by any of them, and not a token more.
    let mut n_more = 0;
    let over = loop {
        let answer = governed.chat(&keys[2], "hi").await;
        if answer.status != 200 {
            break answer;
        }
        n_more += answer.json()["usage"]["total_tokens"].as_u64().expect("a count");
        assert!(spent + n_more <= 6_000, "{spent} and {n_more}");
    };
    assert_eq!((over.status, over.error().2.as_deref()), (429, Some("insufficient_quota")));
    assert!(over.text.contains("those who share this key's budget"), "{}", over.text);
    governed.act("/budget/shared/reset_spend", json!({})).await;
    assert_eq!(governed.chat(&keys[3], "hi").await.status, 200);
    governed.is_verified().await;
    governed.stop().await;
}

#[tokio::test]
async fn a_shared_budget_outlives_a_restart_and_is_not_deleted_while_named() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let governed = in_folder(dir.path()).await;
    let master = governed.master.clone();
    governed.act("/budget/new", json!({ "budget_id": "b", "max_budget": "0.00001", "rpm_limit": 4 })).await;
    let (one, one_id) = governed.key(json!({ "budget_id": "b" })).await;
    let (two, two_id) = governed.key(json!({ "budget_id": "b" })).await;
    let chat = async |governed: &Governed, key: &str, n: u32| {
        governed.send(key, "/v1/chat/completions", chat_body("/forever", json!({ "max_tokens": n }))).await
    };
    let first = chat(&governed, &one, 10).await;
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "3");
    let n_prompt = first.json()["usage"]["prompt_tokens"].as_u64().expect("a count");
    let cost = PRICE.cost(n_prompt, 0, 10);
    let row = governed.row_of(&first).await;
    assert_eq!((row.budgets, row.cost_nusd), (vec!["b".to_owned()], cost));
    governed.stop().await;
    let governed = in_folder(dir.path()).await;
    let left = NUSD / 100_000 - cost;
    let n_left = u32::try_from((left - PRICE.cost(n_prompt, 0, 0)) / 7).expect("few");
    assert_eq!(
        chat(&governed, &two, n_left + 1).await.status,
        429,
        "what the other key spent before the restart counts"
    );
    assert_eq!(chat(&governed, &two, n_left).await.status, 200);
    let named = governed.act_as(&master, "/budget/delete", json!({ "id": "b" })).await;
    assert!(named.status == 400 && named.text.contains("named by 2 keys and 0 teams"), "{}", named.text);
    for (path, body) in [
        ("/key/generate", json!({ "budget_id": "nobody" })),
        ("/team/new", json!({ "budget_id": "nobody" })),
        ("/key/update", json!({ "key": one_id, "budget_id": "nobody" })),
        ("/budget/new", json!({ "budget_id": "b" })),
        ("/budget/new", json!({ "budget_id": "a b" })),
        ("/budget/new", json!({ "max_budget": -1 })),
        ("/budget/new", json!({ "odd": 1 })),
    ] {
        assert_eq!(governed.act_as(&master, path, body.clone()).await.status, 400, "{path} {body}");
    }
    // More money holds at once.
    governed.act("/budget/update", json!({ "budget_id": "b", "max_budget": 1 })).await;
    assert_eq!(chat(&governed, &one, 100).await.status, 200);
    let listed = governed.look("/budget/list").await;
    assert_eq!((&listed[0]["budget_id"], &listed[0]["max_budget"]), (&json!("b"), &json!(1.0)));
    governed.act("/key/update", json!({ "key": one_id, "budget_id": null })).await;
    governed.act("/key/delete", json!({ "keys": [two_id] })).await;
    governed.act("/budget/delete", json!({ "id": "b" })).await;
    assert_eq!(governed.look_as(&master, "/budget/info?budget_id=b").await.status, 404);
    assert_eq!(governed.chat(&one, "hi").await.status, 200);
    governed.is_verified().await;
    governed.stop().await;
}
