//! What clients see when the engine's process dies. Names are the contract's rows.

use crate::support::{Events, PATIENCE, Server, read_until};
use hearth::engine::EngineMode;
use serde_json::json;
use std::time::Duration;

async fn start() -> Server {
    Server::with(|setup| {
        setup.mode = EngineMode::child(env!("CARGO_BIN_EXE_hearth"));
        setup.scripted().step_us = 300;
        setup.engine.n_ctx = Some(100_000);
    })
    .await
}

/// Waits until requests are admitted again.
async fn recovered(server: &Server) {
    let is_ready = async {
        while server.get("/readyz").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_ready).await.expect("ready again");
}

#[tokio::test]
async fn strm_09_a_crash_ends_streams_with_an_error_event_and_the_server_lives() {
    let server = start().await;
    let bystander = server.open_stream("/forever").await;
    let culprit = server.open_stream("/crash").await;
    for stream in [bystander, culprit] {
        let events = Events::parse(&read_until(stream, |_| false).await);
        assert!(!events.is_done && events.finish(0).is_empty());
        let error = &events.chunks.last().expect("an error event")["error"];
        assert_eq!((&error["type"], &error["code"]), (&json!("server_error"), &json!("internal_error")));
    }
    assert_eq!(server.get("/livez").await.status, 200);
    recovered(&server).await;
    assert_eq!(server.chat("after", json!({})).await.content(), "after");
    assert!(server.get("/metrics").await.text.contains("hearth_engine_restarts_total{model=\"Scripted-1\"} 1"));
    server.stop().await;
}

#[tokio::test]
async fn err_05_a_request_that_crashed_the_engine_twice_is_500_and_then_refused() {
    let server = start().await;
    for _ in 0..2 {
        let answer = server.chat("/crash", json!({})).await;
        let expected = (500, "server_error".into(), Some("internal_error".into()), None);
        assert_eq!(answer.error(), expected);
        recovered(&server).await;
    }
    let (status, _, code, _) = server.chat("/crash", json!({})).await.error();
    assert_eq!((status, code.as_deref()), (400, Some("request_quarantined")));
    assert_eq!(server.chat("others", json!({})).await.content(), "others");
    server.stop().await;
}
