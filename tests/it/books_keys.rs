//! Keys over real HTTP: what they open, what they don't, and how fast they are gone.

use crate::support::governed::Governed;
use crate::support::{Answer, MODEL, chat_body, read_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// LiteLLM's documented body, with a team that exists.
#[tokio::test]
async fn litellms_call_makes_a_key_that_chats_and_is_gone_when_revoked() {
    let house = Governed::start().await;
    house.act("/team/new", json!({ "team_id": "core" })).await;
    let made = house
        .act(
            "/key/generate",
            json!({ "models": ["house/Model"], "max_budget": 10, "duration": "30d", "team_id": "core",
                    "metadata": { "user_id": "user@example.com" } }),
        )
        .await;
    let key = made["key"].as_str().expect("a key");
    assert!(key.starts_with("sk-hearth-") && made["key_name"].as_str().is_some_and(|name| name.ends_with('…')));
    assert_eq!((&made["max_budget"], &made["team_id"]), (&json!(10.0), &json!("core")));
    assert!(made["expires"].as_str().is_some_and(|time| time.ends_with('Z')));
    let body = json!({ "model": "house/Model", "messages": [{ "role": "user", "content": "hello" }] });
    assert_eq!(house.send(key, "/v1/chat/completions", body.clone()).await.content(), "hello");
    house.act("/key/delete", json!({ "keys": [key] })).await;
    let started = Instant::now();
    let refused = house.send(key, "/v1/chat/completions", body).await;
    assert_eq!((refused.status, refused.error().2.as_deref()), (401, Some("invalid_api_key")));
    assert!(started.elapsed() < Duration::from_secs(4));
    house.is_verified().await;
    house.stop().await;
}

#[tokio::test]
async fn every_refused_key_reads_the_same() {
    let house = Governed::start().await;
    let (good, id) = house.key(json!({})).await;
    let (blocked, blocked_id) = house.key(json!({})).await;
    house.act("/key/block", json!({ "key": blocked_id })).await;
    let (expired, _) = house.key(json!({ "duration": "1s" })).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (revoked, revoked_id) = house.key(json!({})).await;
    house.act("/key/delete", json!({ "keys": [revoked_id] })).await;
    let mut typo = good.clone();
    typo.replace_range(30..31, if &good[30..31] == "x" { "y" } else { "x" });
    let mut told = Vec::new();
    for key in ["", "sk-other", &house.master, &blocked, &expired, &revoked, &typo] {
        let answer = house.chat(key, "hi").await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Bearer"), "{key}");
        told.push(answer.text);
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(house.chat(&good, "hi").await.content(), "hi");
    house.act("/key/unblock", json!({ "key": blocked_id })).await;
    assert_eq!(house.chat(&blocked, "hi").await.status, 200);
    let text = house.look(&format!("/key/info?key={id}")).await.to_string();
    assert!(!text.contains(&good[23..]), "no secret");
    house.stop().await;
}

#[tokio::test]
async fn a_rotated_key_has_its_grace() {
    let house = Governed::start().await;
    let (old, id) = house.key(json!({})).await;
    let new = house.act(&format!("/key/{id}/regenerate"), json!({ "grace_period": "3s" })).await;
    let rotated = Instant::now();
    let new = new["key"].as_str().expect("a key").to_owned();
    assert_eq!(house.chat(&old, "a").await.status, 200);
    assert_eq!(house.chat(&new, "b").await.status, 200);
    tokio::time::sleep(Duration::from_millis(3100).saturating_sub(rotated.elapsed())).await;
    assert_eq!(house.chat(&old, "a").await.status, 401);
    assert_eq!(house.chat(&new, "b").await.status, 200);
    let newest = house.act(&format!("/key/{id}/regenerate"), json!({})).await;
    assert_eq!(house.chat(&new, "b").await.status, 401, "without grace the secret before is gone at once");
    assert_eq!(house.chat(newest["key"].as_str().expect("a key"), "c").await.status, 200);
    house.stop().await;
}

#[tokio::test]
async fn a_key_sees_the_models_it_may_use_and_no_others() {
    let house = Governed::start().await;
    let (alias, _) = house.key(json!({ "models": ["house/*"] })).await;
    let (none, _) = house.key(json!({ "models": ["elsewhere"] })).await;
    let names = |answer: Answer| -> Vec<String> {
        let data = answer.json()["data"].as_array().cloned().unwrap_or_default();
        data.iter().filter_map(|model| model["id"].as_str().map(str::to_owned)).collect()
    };
    let list = async |key: &str| {
        let get = house.server.client.get(house.server.url("/v1/models")).bearer_auth(key);
        names(Answer::of(get.send().await.expect("an answer")).await)
    };
    assert_eq!(list(&alias).await, ["house/Model"]);
    assert_eq!(list(&none).await, [""; 0]);
    let unknown = house.send(&none, "/v1/chat/completions", json!({ "model": "nobody", "messages": [] })).await;
    assert_eq!(unknown.status, 400, "a body that is no request is refused before its model is looked for");
    for (path, body) in [
        ("/v1/chat/completions", chat_body("hi", json!({}))),
        ("/v1/completions", json!({ "model": MODEL, "prompt": "hi" })),
        ("/v1/responses", json!({ "model": MODEL, "input": "hi" })),
        ("/v1/messages", json!({ "model": MODEL, "max_tokens": 4, "messages": [{ "role": "user", "content": "hi" }] })),
        ("/api/chat", json!({ "model": MODEL, "messages": [{ "role": "user", "content": "hi" }] })),
        ("/api/show", json!({ "model": MODEL })),
        ("/tokenize", json!({ "model": MODEL, "content": "hi" })),
        ("/detokenize", json!({ "model": MODEL, "tokens": [104] })),
        ("/v1/embeddings", json!({ "model": MODEL, "input": "hi" })),
    ] {
        let answer = house.send(&none, path, body).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text);
    }
    let of = |name: &str| {
        let body = json!({ "model": name, "messages": [{ "role": "user", "content": "hi" }] });
        house.send(&none, "/v1/chat/completions", body)
    };
    let (real, made_up) = (of(MODEL).await, of("Made-up-1").await);
    assert_eq!(real.text.replace(MODEL, "M"), made_up.text.replace("Made-up-1", "M"), "no word tells which exists");
    house.stop().await;
}

#[tokio::test]
async fn a_revoked_key_cuts_its_stream_and_nobody_elses() {
    let house = Governed::with(|setup, _| setup.scripted().step_us = 2_000).await;
    let (mine, id) = house.key(json!({})).await;
    let (other, _) = house.key(json!({})).await;
    let open = async |key: &str| {
        let body = chat_body("/forever", json!({ "stream": true, "max_tokens": 3000 }));
        let mut stream = house.post(key, "/v1/chat/completions", &body).send().await.expect("an answer");
        // The first chunk has the role and comes before any token.
        let mut text = String::new();
        while !text.contains("\"content\":\".") {
            let more = stream.chunk().await.expect("it lives").expect("it goes on");
            text += &String::from_utf8_lossy(&more);
        }
        stream
    };
    let (cut, mut going) = (open(&mine).await, open(&other).await);
    house.server.busy(2).await;
    let started = Instant::now();
    house.act("/key/block", json!({ "key": id })).await;
    let text = String::from_utf8(read_until(cut, |_| false).await).expect("text");
    assert!(started.elapsed() < Duration::from_secs(4), "uncut it lasts six seconds");
    let last = text.trim_end().lines().last().unwrap_or_default().to_owned();
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap_or_default()).expect("an error event");
    assert_eq!(last["error"]["code"], "invalid_api_key");
    assert!(going.chunk().await.expect("it lives").is_some());
    let rows = house.rows(1).await;
    assert_eq!((rows[0].finish.as_str(), rows[0].error_code.as_deref()), ("revoked", Some("invalid_api_key")));
    assert!(rows[0].out_tok > 0);
    drop(going);
    house.rows(2).await;
    house.stop().await;
}

#[tokio::test]
async fn revoked_keys_may_let_their_streams_finish() {
    let house = Governed::with(|setup, books| {
        setup.scripted().step_us = 1_000;
        books.revoke_cuts_streams = false;
    })
    .await;
    let (key, id) = house.key(json!({})).await;
    let body = chat_body("/count 100", json!({ "stream": true }));
    let mut stream = house.post(&key, "/v1/chat/completions", &body).send().await.expect("an answer");
    assert!(stream.chunk().await.expect("it lives").is_some());
    house.act("/key/delete", json!({ "keys": [id] })).await;
    let text = String::from_utf8(read_until(stream, |_| false).await).expect("text");
    assert!(text.trim_end().ends_with("data: [DONE]"));
    assert_eq!(house.chat(&key, "hi").await.status, 401);
    house.stop().await;
}

#[tokio::test]
async fn a_key_of_other_addresses_or_roles_is_forbidden_and_its_holder_may_look_at_it() {
    let house = Governed::start().await;
    let (far, _) = house.key(json!({ "allowed_cidrs": ["10.0.0.0/8"] })).await;
    let (near, id) = house.key(json!({ "allowed_cidrs": ["127.0.0.1"], "rpm_limit": 7, "metadata": { "x": 1 } })).await;
    let (auditor, _) = house.key(json!({ "roles": ["auditor"] })).await;
    assert_eq!(house.chat(&far, "hi").await.error().2.as_deref(), Some("insufficient_permissions"));
    assert_eq!(house.chat(&auditor, "hi").await.status, 403);
    assert_eq!(house.chat(&near, "hi").await.status, 200);
    let own = async |key: &str| {
        let get = house.server.client.get(house.server.url("/v1/key")).bearer_auth(key);
        Answer::of(get.send().await.expect("an answer")).await
    };
    let shown = own(&near).await.json();
    assert_eq!((&shown["key_id"], &shown["rpm_limit"]), (&json!(id), &json!(7)));
    assert!(shown["spent_tokens"].as_u64().is_some_and(|n| n > 0) && shown.get("metadata").is_none());
    assert_eq!(own("sk-other").await.status, 401);
    house.stop().await;
}

#[tokio::test]
async fn keys_and_teams_outlive_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let open = || {
        let metrics = std::sync::Arc::new(hearth::telemetry::Metrics::new());
        hearth::gateway::Books::open(crate::support::governed::books_config(dir.path()), &metrics)
    };
    let books = open().expect("fresh books");
    assert!(open().is_err(), "a folder has one server");
    let spec = hearth::gateway::KeySpec { alias: Some("kept".into()), ..Default::default() };
    let made = books.generate_key("test", spec.clone()).await.expect("a key");
    assert!(books.generate_key("test", spec).await.is_err(), "an alias is one key's");
    let gone = books.generate_key("test", Default::default()).await.expect("a key");
    books.new_team("test", "t".into(), Default::default()).await.expect("a team");
    books.revoke_keys("test", vec![gone.record.id.clone()]).await.expect("revoked");
    books.close().await;
    drop(books);
    let books = open().expect("the same books");
    let found = books.keyring().find(&made.credential.reveal(), 0).expect("the key opens");
    assert_eq!(found.spec.alias.as_deref(), Some("kept"));
    assert!(books.keyring().find(&gone.credential.reveal(), 0).is_none(), "revoked stays revoked");
    assert!(books.keyring().snapshot().teams.contains_key("t"));
    assert_eq!(books.store().verify(1).await.expect("read").fault, None);
}

/// A key that `hearth.toml` knows by its digest.
#[tokio::test]
async fn a_key_of_the_file_opens_and_is_changed_in_the_file_only() {
    use hearth::gateway::{Granted, GrantedKey, GrantedTeam, KeySpec, TeamSpec};
    use sha2::{Digest, Sha256};
    let text = "any-text-of-the-operators-that-is-long-enough";
    let team = TeamSpec { models: vec!["house/Model".into()], ..Default::default() };
    let spec = KeySpec { team: Some("t".into()), ..Default::default() };
    let granted = Granted {
        keys: vec![GrantedKey { name: "ci".into(), sha256: Sha256::digest(text).into(), spec }],
        teams: vec![GrantedTeam { id: "t".into(), spec: team }],
    };
    let house = Governed::with(|_, books| books.granted = granted).await;
    let ask = |model: &str| json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }] });
    let answer = house.send(text, "/v1/chat/completions", ask("house/Model")).await;
    assert_eq!(answer.content(), "hi");
    assert_eq!(house.send(text, "/v1/chat/completions", ask(MODEL)).await.status, 404, "the team's models bind");
    let row = house.row_of(&answer).await;
    assert_eq!((row.key_id.as_deref(), row.team_id.as_deref()), (Some("ci"), Some("t")));
    assert_eq!(house.look("/key/list").await["keys"][0]["key_id"], "ci");
    assert_eq!(house.look("/key/info?key=ci").await["info"]["team_id"], "t");
    for (path, body) in [
        ("/key/block", json!({ "key": "ci" })),
        ("/key/delete", json!({ "keys": ["ci"] })),
        ("/team/block", json!({ "team_id": "t" })),
        ("/team/update", json!({ "team_id": "t", "models": [] })),
        ("/team/delete", json!({ "team_ids": ["t"] })),
        ("/team/new", json!({ "team_id": "t" })),
    ] {
        let refused = house.act_as(&house.master, path, body).await.status;
        assert!([400, 404].contains(&refused), "{path}: {refused}");
    }
    let (made, _) = house.key(json!({ "team_id": "t" })).await;
    assert_eq!(house.send(&made, "/v1/chat/completions", ask(MODEL)).await.status, 404);
    assert_eq!(house.send(&made, "/v1/chat/completions", ask("house/Model")).await.content(), "hi");
    house.stop().await;
}
