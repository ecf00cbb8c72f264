//! Every route × every identity: who gets in where. The routes come from the server itself (`/openapi.json`, which a unit
//! test holds against the router), so a route without a row here fails.

use crate::support::governed::Governed;
use reqwest::Method;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

const KEY: &str = "sk-good";

/// Who asks. Whoever adds one says in [`House::start`] what it sends, and in [`Access::admits`] where it gets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    None,
    /// A key that was never given out.
    Unknown,
    /// Nearly a good one.
    Prefix,
    Empty,
    /// The good key, as another scheme.
    Basic,
    /// A key of the settings.
    Static,
    StaticInXApiKey,
    /// A key of the books, for requests.
    Data,
    Expired,
    Revoked,
    Blocked,
    /// A key for requests from somewhere else.
    Elsewhere,
    /// Keys of the admin plane, which are not for requests.
    Auditor,
    Admin,
    Master,
}

/// A server with books, and what each identity sends.
struct House {
    governed: Governed,
    identities: Vec<(Identity, Option<(&'static str, String)>)>,
}

impl House {
    async fn start() -> Self {
        let governed = Governed::with(|setup, _| {
            setup.key(KEY);
            setup.http.expose_slots = true;
            // Here wrong keys are the point.
            setup.http.clients.failures_max = 0;
        })
        .await;
        let key = async |body| governed.key(body).await.0;
        let (revoked, revoked_id) = governed.key(json!({})).await;
        governed.act("/key/delete", json!({ "keys": [revoked_id] })).await;
        let (blocked, blocked_id) = governed.key(json!({})).await;
        governed.act("/key/block", json!({ "key": blocked_id })).await;
        let expired = key(json!({ "duration": "1s" })).await;
        let bearer = |key: &str| Some(("authorization", format!("Bearer {key}")));
        let identities = vec![
            (Identity::None, None),
            (Identity::Unknown, bearer("sk-unknown")),
            (Identity::Prefix, bearer(&KEY[..KEY.len() - 1])),
            (Identity::Empty, bearer("")),
            (Identity::Basic, Some(("authorization", format!("Basic {KEY}")))),
            (Identity::Static, bearer(KEY)),
            (Identity::StaticInXApiKey, Some(("x-api-key", KEY.to_owned()))),
            (Identity::Data, bearer(&key(json!({})).await)),
            (Identity::Expired, bearer(&expired)),
            (Identity::Revoked, bearer(&revoked)),
            (Identity::Blocked, bearer(&blocked)),
            (Identity::Elsewhere, bearer(&key(json!({ "allowed_cidrs": ["10.0.0.0/8"] })).await)),
            (Identity::Auditor, bearer(&key(json!({ "roles": ["auditor"] })).await)),
            (Identity::Admin, bearer(&key(json!({ "roles": ["admin"] })).await)),
            (Identity::Master, bearer(&governed.master)),
        ];
        tokio::time::sleep(Duration::from_millis(1100)).await;
        Self { governed, identities }
    }

    async fn ask(&self, method: &str, path: &str, identity: Identity) -> u16 {
        let path = path.replace("{id}", "x").replace("{digest}", "x");
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let server = &self.governed.server;
        let mut request = server.client.request(method.clone(), server.url(&path));
        if method == Method::POST {
            request = request.header("content-type", "application/json").body("{}");
        }
        let sent = self.identities.iter().find(|(it, _)| *it == identity).expect("every identity is here");
        if let Some((name, value)) = &sent.1 {
            request = request.header(*name, value);
        }
        request.send().await.expect("an answer").status().as_u16()
    }
}

/// Whom a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Everybody,
    Key,
    /// What changes it for all is for the operator's own keys.
    Operator,
}
use Access::{Everybody, Key, Operator};

impl Access {
    /// The status with which an identity is refused; `None`: it gets in.
    fn refuses(self, identity: Identity) -> Option<u16> {
        match (self, identity) {
            (Everybody, _) | (_, Identity::Static | Identity::StaticInXApiKey) | (Key, Identity::Data) => None,
            // A right key in the wrong place.
            (_, Identity::Data | Identity::Elsewhere | Identity::Auditor | Identity::Admin) => Some(403),
            // All others read the same.
            _ => Some(401),
        }
    }
}

/// Method, path, whom it is for, and the status of a request that is let in, with `{}` for a body.
#[rustfmt::skip]
const ROWS: &[(&str, &str, Access, u16)] = &[
    ("GET", "/", Everybody, 200),
    ("GET", "/health", Everybody, 200),
    ("GET", "/v1/health", Everybody, 200),
    ("GET", "/livez", Everybody, 200),
    ("GET", "/readyz", Everybody, 200),
    ("GET", "/openapi.json", Everybody, 200),
    ("GET", "/docs", Everybody, 200),
    ("GET", "/metrics", Key, 200),
    ("GET", "/v1/key", Key, 404),
    ("GET", "/props", Key, 200),
    ("GET", "/slots", Key, 200),
    ("GET", "/lora-adapters", Key, 200),
    ("POST", "/lora-adapters", Operator, 400),
    ("POST", "/tokenize", Key, 400),
    ("POST", "/detokenize", Key, 400),
    ("POST", "/apply-template", Key, 400),
    ("POST", "/completion", Key, 400),
    ("POST", "/infill", Key, 400),
    ("POST", "/embedding", Key, 400),
    ("POST", "/chat/completions", Key, 400),
    ("POST", "/v1/chat/completions", Key, 400),
    ("POST", "/chat/completions/input_tokens", Key, 400),
    ("POST", "/v1/chat/completions/input_tokens", Key, 400),
    ("POST", "/completions", Key, 400),
    ("POST", "/v1/completions", Key, 400),
    ("POST", "/responses", Key, 400),
    ("POST", "/v1/responses", Key, 400),
    ("POST", "/responses/input_tokens", Key, 400),
    ("POST", "/v1/responses/input_tokens", Key, 400),
    ("GET", "/responses/{id}", Key, 404),
    ("GET", "/v1/responses/{id}", Key, 404),
    ("DELETE", "/responses/{id}", Key, 404),
    ("DELETE", "/v1/responses/{id}", Key, 404),
    ("GET", "/responses/{id}/input_items", Key, 404),
    ("GET", "/v1/responses/{id}/input_items", Key, 404),
    ("POST", "/responses/{id}/cancel", Key, 400),
    ("POST", "/v1/responses/{id}/cancel", Key, 400),
    ("POST", "/embeddings", Key, 400),
    ("POST", "/v1/embeddings", Key, 400),
    ("POST", "/rerank", Key, 400),
    ("POST", "/v1/rerank", Key, 400),
    ("POST", "/v2/rerank", Key, 400),
    ("POST", "/reranking", Key, 400),
    ("POST", "/v1/reranking", Key, 400),
    ("POST", "/score", Key, 400),
    ("POST", "/v1/score", Key, 400),
    ("POST", "/classify", Key, 400),
    ("POST", "/v1/classify", Key, 400),
    ("GET", "/models", Key, 200),
    ("GET", "/v1/models", Key, 200),
    ("GET", "/models/{id}", Key, 404),
    ("GET", "/v1/models/{id}", Key, 404),
    ("POST", "/v1/messages", Key, 400),
    ("POST", "/v1/messages/count_tokens", Key, 400),
    ("POST", "/api/chat", Key, 200),
    ("POST", "/api/generate", Key, 200),
    ("POST", "/api/embed", Key, 400),
    ("POST", "/api/embeddings", Key, 200),
    ("GET", "/api/tags", Key, 200),
    ("GET", "/api/ps", Key, 200),
    ("POST", "/api/show", Key, 200),
    ("GET", "/api/version", Key, 200),
    ("POST", "/api/pull", Key, 200),
    ("POST", "/api/create", Key, 403),
    ("POST", "/api/copy", Key, 403),
    ("POST", "/api/push", Key, 403),
    ("DELETE", "/api/delete", Key, 403),
    ("POST", "/api/delete", Key, 403),
    ("GET", "/api/blobs/{digest}", Key, 403),
    ("HEAD", "/api/blobs/{digest}", Key, 403),
    ("POST", "/api/blobs/{digest}", Key, 403),
    ("PUT", "/api/blobs/{digest}", Key, 403),
    ("PATCH", "/api/blobs/{digest}", Key, 403),
    ("DELETE", "/api/blobs/{digest}", Key, 403),
];

#[tokio::test]
async fn every_route_has_a_row_and_every_row_a_route() {
    let house = House::start().await;
    let document = house.governed.server.get("/openapi.json").await.json();
    let mut routes = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("an item").keys() {
            routes.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    let rows: BTreeSet<String> = ROWS.iter().map(|(method, path, ..)| format!("{method} {path}")).collect();
    assert_eq!(rows.len(), ROWS.len(), "a row is there twice");
    let missing: Vec<&String> = routes.difference(&rows).collect();
    let needless: Vec<&String> = rows.difference(&routes).collect();
    assert!(missing.is_empty() && needless.is_empty(), "routes without a row: {missing:?}; rows of none: {needless:?}");
}

#[tokio::test]
async fn every_identity_gets_in_where_it_should_and_nowhere_else() {
    let house = House::start().await;
    let mut faults = Vec::new();
    for (method, path, access, status) in ROWS {
        for (identity, _) in &house.identities {
            let status = match (*path, identity) {
                // Who has a record is shown it.
                ("/v1/key", Identity::Data) => 200,
                _ => *status,
            };
            let wanted = access.refuses(*identity).unwrap_or(status);
            let got = house.ask(method, path, *identity).await;
            if got != wanted {
                faults.push(format!("{method} {path} as {identity:?}: {got}, not {wanted}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A path or method that nobody serves tells strangers no more than one that is.
#[tokio::test]
async fn what_is_not_there_needs_a_key_as_well() {
    let house = House::start().await;
    for path in ["/nope", "/v1", "/v1/nope", "/admin", "/key/generate", "//v1/models", "/v1/models%2f", "/livez/x"] {
        for (identity, wanted) in
            [(Identity::None, 401), (Identity::Revoked, 401), (Identity::Admin, 403), (Identity::Static, 404)]
        {
            assert_eq!(house.ask("GET", path, identity).await, wanted, "{path} as {identity:?}");
        }
    }
    let paths: BTreeSet<&str> = ROWS.iter().filter(|row| row.2 != Everybody).map(|row| row.1).collect();
    for path in paths {
        for method in ["PUT", "PATCH", "TRACE", "DELETE", "HEAD", "QUERY"] {
            assert_eq!(house.ask(method, path, Identity::Unknown).await, 401, "{method} {path}");
        }
    }
}
