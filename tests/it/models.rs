//! `GET /v1/models`. Names are the contract's rows.

use crate::support::{MODEL, Server};
use serde_json::json;

#[tokio::test]
async fn mod_01_the_list_serves_every_family_of_clients() {
    let server = Server::start().await;
    let list = server.get("/v1/models").await.json();
    assert_eq!(
        (&list["object"], &list["has_more"], &list["first_id"], &list["last_id"]),
        (&json!("list"), &json!(false), &json!(MODEL), &json!("house/Model"))
    );
    let model = &list["data"][0];
    assert_eq!(
        (&model["id"], &model["object"], &model["owned_by"]),
        (&json!(MODEL), &json!("model"), &json!("hearth"))
    );
    assert_eq!(
        (&model["type"], &model["display_name"], &model["lifecycle"]),
        (&json!("model"), &json!(MODEL), &json!("active"))
    );
    assert_eq!((&model["created"], &model["created_at"]), (&json!(1_790_000_000), &json!("2026-09-21T14:13:20Z")));
}

#[tokio::test]
async fn mod_02_04_one_model_by_any_of_its_names() {
    let server = Server::start().await;
    let listed = server.get("/v1/models").await.json()["data"][0].clone();
    for name in [MODEL, "scripted-1:latest", "default", "house/model", "house%2FModel", "house%2fmodel:latest"] {
        let answer = server.get(&format!("/v1/models/{name}")).await;
        assert_eq!((answer.status, answer.json()), (200, listed.clone()), "{name}");
    }
    let unknown = server.get("/v1/models/gpt-4o").await;
    let code = (404, "invalid_request_error".into(), Some("model_not_found".into()), Some("model".into()));
    assert_eq!(unknown.error(), code);
}

#[tokio::test]
async fn mod_03_the_served_context() {
    let server = Server::with(|setup| setup.engine.n_ctx = Some(512)).await;
    let model = server.get("/models").await.json()["data"][0].clone();
    assert_eq!((&model["max_model_len"], &model["meta"]["n_ctx"]), (&json!(512), &json!(512)));
    assert_eq!(model["meta"]["n_vocab"], 260);
}
