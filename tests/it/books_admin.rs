//! The admin plane: who may do what, what is refused, what is kept of it.

use crate::support::governed::Governed;
use crate::support::{Answer, chat_body};
use serde_json::{Value, json};

/// Every route with a body that would work, or nearly; `TEAM` and `KEY` stand for another team's.
const ROUTES: [(&str, &str, &str); 48] = [
    ("POST", "/key/generate", r#"{"team_id":"TEAM"}"#),
    ("POST", "/key/update", r#"{"key":"KEY","rpm_limit":1}"#),
    ("POST", "/key/delete", r#"{"keys":["KEY"]}"#),
    ("POST", "/key/block", r#"{"key":"KEY"}"#),
    ("POST", "/key/unblock", r#"{"key":"KEY"}"#),
    ("GET", "/key/info?key=KEY", ""),
    ("GET", "/key/list?team_id=TEAM", ""),
    ("POST", "/key/KEY/regenerate", "{}"),
    ("POST", "/key/KEY/reset_spend", "{}"),
    ("POST", "/team/new", r#"{"team_id":"more"}"#),
    ("POST", "/team/update", r#"{"team_id":"TEAM"}"#),
    ("POST", "/team/delete", r#"{"team_ids":["TEAM"]}"#),
    ("POST", "/team/block", r#"{"team_id":"TEAM"}"#),
    ("POST", "/team/unblock", r#"{"team_id":"TEAM"}"#),
    ("GET", "/team/info?team_id=TEAM", ""),
    ("GET", "/team/list", ""),
    ("POST", "/team/TEAM/reset_spend", "{}"),
    ("POST", "/budget/new", r#"{"budget_id":"BUDGET"}"#),
    ("POST", "/budget/update", r#"{"budget_id":"shared","rpm_limit":9}"#),
    ("GET", "/budget/info?budget_id=shared", ""),
    ("POST", "/budget/info", r#"{"budgets":["shared"]}"#),
    ("GET", "/budget/list", ""),
    ("POST", "/budget/shared/reset_spend", "{}"),
    ("POST", "/budget/delete", r#"{"id":"BUDGET"}"#),
    ("GET", "/spend/logs?team_id=TEAM", ""),
    ("GET", "/spend/keys?team_id=TEAM", ""),
    ("GET", "/spend/teams?team_id=TEAM", ""),
    ("GET", "/spend/tags?team_id=TEAM", ""),
    ("GET", "/global/spend/report?team_id=TEAM", ""),
    ("GET", "/audit/events", ""),
    ("GET", "/audit/verify", ""),
    ("GET", "/audit/export", ""),
    ("GET", "/audit/content?request_id=nobodys", ""),
    ("POST", "/subject/erase", r#"{"user_id":"nobody"}"#),
    ("GET", "/db/check", ""),
    ("GET", "/model/info", ""),
    ("GET", "/v1/model/info", ""),
    ("POST", "/model/load", r#"{"model":"Scripted-1"}"#),
    ("POST", "/model/unload", r#"{"model":"nobodys"}"#),
    ("GET", "/upstreams", ""),
    ("POST", "/cache/flush", ""),
    ("GET", "/admin/slots", ""),
    ("GET", "/config", ""),
    ("POST", "/config/reload", ""),
    ("GET", "/metrics", ""),
    ("GET", "/health/liveliness", ""),
    ("GET", "/health/readiness", ""),
    ("GET", "/nowhere", ""),
];

/// What each identity gets at each route, in the order above: nobody and wrong keys 401, keys for data 403 everywhere.
fn expected(identity: &str, method: &str, path: &str) -> u16 {
    let rules = path.starts_with("/team") && method == "POST" || path.ends_with("/reset_spend");
    let looks =
        ["/audit", "/db", "/model", "/metrics", "/upstreams", "/cache", "/admin", "/config", "/budget", "/v1/model"]
            .iter()
            .any(|prefix| path.starts_with(prefix));
    match identity {
        "none" | "wrong" | "revoked" => 401,
        "data" => 403,
        _ if path == "/nowhere" => 404,
        "admin" | "master" if path.contains("nobodys") || ["/subject/erase", "/model/unload"].contains(&path) => 404,
        _ if path.contains("nobodys") => 403,
        "auditor" if path == "/budget/info" => 200,
        "auditor" if method == "POST" => 403,
        "team-admin" if rules || looks || path == "/subject/erase" => 403,
        "team-admin" if path.starts_with("/health") || path == "/team/list" => 200,
        // Another team's: the same as if it were not there.
        "team-admin" => 404,
        _ => 200,
    }
}

#[tokio::test]
async fn every_route_knows_every_identity() {
    let house = Governed::start().await;
    for team in ["own", "other"] {
        house.act("/team/new", json!({ "team_id": team })).await;
    }
    house.act("/budget/new", json!({ "budget_id": "shared" })).await;
    let (data, _) = house.key(json!({})).await;
    let (auditor, _) = house.key(json!({ "roles": ["auditor"] })).await;
    let (team_admin, _) = house.key(json!({ "roles": ["team-admin", "data"], "team_id": "own" })).await;
    let (admin, _) = house.key(json!({ "roles": ["admin"] })).await;
    let (revoked, revoked_id) = house.key(json!({ "roles": ["admin"] })).await;
    house.act("/key/delete", json!({ "keys": [revoked_id] })).await;
    let wrong = "sk-hearth-000000000000-0000000000000000000000000000000000000000000000000";
    let identities = [
        ("none", ""),
        ("wrong", wrong),
        ("revoked", &revoked),
        ("data", &data),
        ("auditor", &auditor),
        ("team-admin", &team_admin),
        ("admin", &admin),
        ("master", &house.master),
    ];
    let mut faults = Vec::new();
    for (identity, key) in identities {
        for (method, path, body) in ROUTES {
            // What the last identity did is undone by a fresh team and key.
            let _ = house.act_as(&house.master, "/team/delete", json!({ "team_ids": ["other"] })).await;
            let _ = house.act_as(&house.master, "/team/delete", json!({ "team_ids": ["more"] })).await;
            house.act("/team/new", json!({ "team_id": "other" })).await;
            let (_, other) = house.key(json!({ "team_id": "other" })).await;
            let fill = |text: &str| {
                text.replace("KEY", &other).replace("BUDGET", &format!("of-{identity}")).replace("TEAM", "other")
            };
            let url = house.admin_url(&fill(path));
            let request = match method {
                "POST" => house.server.client.post(url).body(fill(body)),
                _ => house.server.client.get(url),
            };
            let request = if key.is_empty() { request } else { request.bearer_auth(key) };
            let answer = Answer::of(request.send().await.expect("an answer")).await;
            if answer.status != expected(identity, method, path) {
                let wanted = expected(identity, method, path);
                faults.push(format!(
                    "{identity} {method} {path}: {} instead of {wanted}: {}",
                    answer.status, answer.text
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // None of it is on the data plane, whatever the key.
    for (method, path, body) in ROUTES.into_iter().filter(|(_, path, _)| !["/metrics"].contains(path)) {
        let url = house.server.url(path);
        let request =
            if method == "POST" { house.server.client.post(url).body(body) } else { house.server.client.get(url) };
        let answer = Answer::of(request.bearer_auth(&data).send().await.expect("an answer")).await;
        assert_eq!(answer.status, 404, "{path}");
    }
    house.is_verified().await;
    house.stop().await;
}

/// A filter that is misspelt would show everything, so it is refused, in the plane's own words.
#[tokio::test]
async fn queries_are_refused_by_name() {
    let house = Governed::start().await;
    for (path, param) in [
        ("/key/list?page=x", "page"),
        ("/key/list?page=0", "page"),
        ("/key/list?size=1001", "size"),
        ("/spend/logs?page_size=0", "page_size"),
        ("/audit/events?limit=10001", "limit"),
        ("/key/list?team=a", "team"),
        ("/key/info", "key"),
        ("/key/info?key=a&key=b", "key"),
        ("/team/info?id=a", "id"),
        ("/spend/logs?model_name=a", "model_name"),
        ("/spend/logs?start_date=soon", "start_date"),
        ("/audit/events?since=x", "since"),
        ("/audit/content?x=1", "x"),
        ("/global/spend/report?group_by=zz", "group_by"),
    ] {
        let request = house.server.client.get(house.admin_url(path)).bearer_auth(&house.master);
        let answer = Answer::of(request.send().await.expect("an answer")).await;
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(param)), "{path}: {}", answer.text);
    }
    house.stop().await;
}

/// Contract, section 5: slots and the end of the server, for administrators only.
#[tokio::test]
async fn an_admin_sees_slots_and_ends_the_server() {
    let house = Governed::start().await;
    let (auditor, _) = house.key(json!({ "roles": ["auditor"] })).await;
    let (admin, _) = house.key(json!({ "roles": ["admin"] })).await;
    let (data, _) = house.key(json!({})).await;
    let slots = house.server.client.get(house.admin_url("/admin/slots")).bearer_auth(&auditor);
    let slots = Answer::of(slots.send().await.expect("an answer")).await.json();
    let first = &slots["data"][0];
    assert_eq!(first["slots"].as_array().expect("slots").len(), 4);
    assert_eq!((&first["slots"][0]["state"], &first["waiting"]), (&json!("idle"), &json!(0)));
    assert_eq!(house.act_as(&auditor, "/admin/drain", json!({})).await.status, 403);
    assert_eq!(house.chat(&data, "hi").await.status, 200);
    let ended = house.act_as(&admin, "/admin/drain", json!({})).await;
    assert_eq!((ended.status, &ended.json()["status"]), (200, &json!("draining")));
    house.is_verified().await;
    // Nobody is at work, so the listener goes at once; until then new work is refused.
    let ask = house.server.client.post(house.server.url("/v1/chat/completions")).bearer_auth(&data);
    let answer = ask.json(&chat_body("hi", json!({}))).send().await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 503));
    house.stop().await;
}

#[tokio::test]
async fn a_teams_admin_rules_its_keys_and_nothing_above() {
    let house = Governed::start().await;
    house.act("/team/new", json!({ "team_id": "own" })).await;
    let (boss, boss_id) = house.key(json!({ "roles": ["team-admin"], "team_id": "own" })).await;
    let made = house.act_as(&boss, "/key/generate", json!({ "key_alias": "mine" })).await.json();
    assert_eq!(made["team_id"], "own");
    let key = made["key"].as_str().expect("a key").to_owned();
    assert_eq!(house.chat(&key, "hi").await.status, 200);
    let refused = async |path: &str, body: Value, status: u16| {
        let answer = house.act_as(&boss, path, body).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
    };
    refused("/key/generate", json!({ "roles": ["admin"] }), 403).await;
    refused("/key/generate", json!({ "team_id": "else" }), 404).await;
    refused("/key/update", json!({ "key": made["key_id"], "team_id": null }), 404).await;
    refused("/key/update", json!({ "key": made["key_id"], "roles": ["auditor"] }), 403).await;
    refused(&format!("/key/{boss_id}/regenerate"), json!({}), 403).await;
    let (high, high_id) = house.key(json!({ "roles": ["admin"], "team_id": "own" })).await;
    for path in ["/key/block", "/key/update"] {
        refused(path, json!({ "key": high_id }), 403).await;
    }
    refused("/key/delete", json!({ "keys": [high_id] }), 403).await;
    refused(&format!("/key/{high_id}/regenerate"), json!({}), 403).await;
    assert_eq!(house.look_as(&high, "/team/list").await.status, 200);
    assert_eq!(house.look_as(&boss, "/key/list").await.json()["total_count"], 3);
    assert_eq!(house.look_as(&boss, "/spend/logs").await.json()[0]["api_key"], made["key_id"]);
    house.stop().await;
}

#[tokio::test]
async fn unknown_fields_and_bad_values_are_refused_by_name() {
    let house = Governed::start().await;
    for (path, body, code, param) in [
        ("/key/generate", json!({ "allowed_routes": ["*"] }), "unknown_parameter", "allowed_routes"),
        ("/key/generate", json!({ "permissions": {} }), "unknown_parameter", "permissions"),
        ("/key/generate", json!({ "config": {} }), "unknown_parameter", "config"),
        ("/key/generate", json!({ "key": "sk-mine" }), "unknown_parameter", "key"),
        ("/key/generate", json!({ "max_budget": -1 }), "invalid_value", "max_budget"),
        ("/key/generate", json!({ "duration": "soon" }), "invalid_value", "duration"),
        ("/key/generate", json!({ "roles": ["root"] }), "invalid_value", "roles"),
        ("/key/generate", json!({ "allowed_cidrs": ["10.0.0.0/64"] }), "invalid_value", "allowed_cidrs"),
        ("/key/generate", json!({ "rpm_limit": "many" }), "invalid_value", "rpm_limit"),
        ("/key/generate", json!({ "rpm_limit": 0 }), "invalid_value", ""),
        ("/key/generate", json!({ "team_id": "nobody" }), "invalid_value", ""),
        ("/key/update", json!({}), "missing_required_parameter", "key"),
        ("/team/new", json!({ "team_id": "a b" }), "invalid_value", ""),
        ("/team/new", json!({ "members": [] }), "unknown_parameter", "members"),
    ] {
        let answer = house.act_as(&house.master, path, body.clone()).await;
        answer.is_refusal(code, param);
    }
    let twice = house.server.client.post(house.admin_url("/key/generate")).bearer_auth(&house.master);
    let twice = Answer::of(twice.body(r#"{"models":["a"],"models":[]}"#).send().await.expect("an answer")).await;
    assert_eq!(twice.status, 400, "{}", twice.text);
    house.stop().await;
}

#[tokio::test]
async fn what_is_updated_holds_and_null_takes_it_back() {
    let house = Governed::start().await;
    let (key, id) = house.key(json!({ "models": ["elsewhere"], "max_budget": 0.15, "budget_duration": "1mo" })).await;
    assert_eq!(house.chat(&key, "hi").await.status, 404);
    let body = json!({ "key": id, "models": null, "key_alias": "x", "budget_duration": null, "tags": ["t"] });
    let changed = house.act("/key/update", body).await;
    assert_eq!(
        (&changed["models"], &changed["max_budget"], &changed["budget_duration"]),
        (&json!([]), &json!(0.15), &Value::Null)
    );
    assert_eq!(house.chat(&key, "hi").await.status, 200);
    assert_eq!(house.look("/key/list?key_alias=x").await["keys"][0]["key_id"], json!(id));
    let taken = house.act_as(&house.master, "/key/generate", json!({ "key_alias": "x" })).await;
    assert_eq!(taken.status, 400);
    house.act("/key/delete", json!({ "key_aliases": ["x"] })).await;
    house.key(json!({ "key_alias": "x" })).await;
    house.stop().await;
}

#[tokio::test]
async fn the_chain_tells_what_was_done_and_what_was_changed_behind_it() {
    let house = Governed::start().await;
    let (key, id) = house.key(json!({ "metadata": { "note": "canary-metadata" } })).await;
    for text in ["one", "two", "three"] {
        house.chat(&key, text).await.content();
    }
    house.act("/key/block", json!({ "key": id })).await;
    house.rows(3).await;
    let events = house.look("/audit/events").await;
    let acts: Vec<&str> = events.as_array().expect("links").iter().filter_map(|link| link["action"].as_str()).collect();
    assert_eq!(acts, ["start", "key.generate", "requests", "requests", "requests", "key.block"]);
    assert!(!events.to_string().contains("canary-metadata"));
    let good = house.look("/audit/verify").await;
    assert_eq!((&good["ok"], &good["links"], &good["rows"]), (&json!(true), &json!(6), &json!(3)));
    let export = house.look_as(&house.master, "/audit/export").await;
    assert_eq!(export.text.lines().count(), 6);
    // Whoever writes the file behind the server's back is found out, by the link that does not fit.
    let path = house.books.dir().join("hearth.db");
    let tampered = |sql: &str, undo: &str, seq: i64| {
        let conn = rusqlite::Connection::open(&path).expect("the file");
        assert_eq!(conn.execute(sql, []).expect("changed"), 1, "{sql}");
        let undo = undo.to_owned();
        let house = &house;
        async move {
            let found = house.look("/audit/verify").await;
            assert_eq!((&found["ok"], &found["first_bad_seq"]), (&json!(false), &json!(seq)), "{found}");
            conn.execute_batch(&undo).expect("undone");
        }
    };
    let cheaper = "UPDATE request SET out_tok = out_tok - 1 WHERE seq = 2";
    tampered(cheaper, "UPDATE request SET out_tok = out_tok + 1 WHERE seq = 2", 4).await;
    let actor = "UPDATE audit SET actor = 'nobody' WHERE seq = 6";
    tampered(actor, "UPDATE audit SET actor = 'master' WHERE seq = 6", 6).await;
    let moved = "UPDATE audit SET ts = ts + 1 WHERE seq = 2";
    tampered(moved, "UPDATE audit SET ts = ts - 1 WHERE seq = 2", 2).await;
    assert_eq!(house.look("/audit/verify").await["ok"], true);
    let conn = rusqlite::Connection::open(&path).expect("the file");
    conn.execute("DELETE FROM audit WHERE seq = 3", []).expect("deleted");
    assert_eq!(house.look("/audit/verify").await["first_bad_seq"], 4);
    house.stop().await;
}

/// Nothing that is secret or somebody's words lies in the books.
#[tokio::test]
async fn words_and_secrets_are_not_in_the_books() {
    let house = Governed::start().await;
    let (key, _) = house.key(json!({})).await;
    house.chat(&key, "canary-prompt-and-answer").await.content();
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }]);
    let body = chat_body("/call f {\"x\":\"canary-arguments\"}", json!({ "tools": tools, "stream": true }));
    house.post(&key, "/v1/chat/completions", &body).send().await.expect("an answer").text().await.expect("text");
    house.rows(2).await;
    let metrics = house.look_as(&house.master, "/metrics").await.text;
    assert!(metrics.contains("hearth_ledger_commit_seconds_count"));
    let secret = &key["sk-hearth-000000000000-".len()..];
    for entry in std::fs::read_dir(house.books.dir()).expect("the folder").flatten() {
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        for canary in ["canary-prompt", "canary-arguments", secret, &secret[..20]] {
            let is_there = bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
            assert!(!is_there, "{canary} in {}", entry.path().display());
        }
    }
    assert!(!metrics.contains("canary") && !metrics.contains(secret));
    house.stop().await;
}

/// What is kept of people's words is sealed, is theirs, and is gone when it is to be gone.
#[tokio::test]
async fn words_are_kept_where_all_allow_it_and_forgotten_by_subject() {
    let house = Governed::with(|_, books| books.audit_content = true).await;
    house.act("/team/new", json!({ "team_id": "no" })).await;
    let (kept, _) = house.key(json!({ "audit": "content", "user_id": "ada" })).await;
    let (other, _) = house.key(json!({ "audit": "content", "user_id": "eve" })).await;
    let (plain, _) = house.key(json!({ "user_id": "ada" })).await;
    let (team, _) = house.key(json!({ "audit": "content", "team_id": "no" })).await;
    let ask = async |key: &str, stream: bool| {
        let body = chat_body("canary-words", json!({ "stream": stream }));
        let response = house.post(key, "/v1/chat/completions", &body).send().await.expect("an answer");
        let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
        assert!(response.text().await.expect("text").contains("[DONE]") || !stream);
        id
    };
    let path = |id: &str| format!("/audit/content?request_id={id}");
    let (whole, streamed, eves) = (ask(&kept, false).await, ask(&kept, true).await, ask(&other, true).await);
    for id in [&whole, &streamed, &eves] {
        let said = house.look(&path(id)).await;
        assert_eq!(said["prompts"][0][0]["content"], "canary-words");
        assert_eq!((&said["answers"][0]["content"], &said["cut"]), (&json!("canary-words"), &json!(false)));
    }
    for key in [&plain, &team] {
        let id = ask(key, false).await;
        assert_eq!(house.look_as(&house.master, &path(&id)).await.status, 404, "not all allow it");
    }
    let bytes = |name: &str| std::fs::read(house.books.dir().join(name)).unwrap_or_default();
    let has = |name: &str, text: &[u8]| bytes(name).windows(text.len()).any(|window| window == text);
    assert!(!has("hearth.db", b"canary-words") && !has("hearth.db-wal", b"canary-words"));
    house.is_verified().await;
    house.act("/subject/erase", json!({ "user_id": "ada" })).await;
    for id in [&whole, &streamed] {
        assert_eq!(house.look_as(&house.master, &path(id)).await.status, 404, "gone");
    }
    assert_eq!(house.look(&path(&eves)).await["answers"][0]["content"], "canary-words", "eve's stay");
    house.is_verified().await;
    // What she says next is kept under a new key.
    let again = ask(&kept, false).await;
    assert_eq!(house.look(&path(&again)).await["answers"][0]["content"], "canary-words");
    let conn = rusqlite::Connection::open(house.books.dir().join("hearth.db")).expect("the file");
    conn.execute("UPDATE content SET ct = zeroblob(length(ct)) WHERE request_id = ?1", [&again]).expect("changed");
    assert_eq!(house.look("/audit/verify").await["ok"], false, "changed words are found out");
    assert_eq!(house.look_as(&house.master, &path(&again)).await.status, 503);
    let acts = house.look("/audit/events?limit=10000").await.to_string();
    assert!(acts.contains("content.read") && acts.contains("subject.erase"));
    house.stop().await;
}
