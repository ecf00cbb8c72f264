//! Every route × every identity: who gets in where. The routes come from the server itself (`/openapi.json`, which a unit
//! test holds against the router), so a route without a row here fails.

use crate::support::Server;
use reqwest::Method;
use std::collections::BTreeSet;

const KEY: &str = "sk-good";

/// Who asks. Whoever adds one says in [`Access::admits`] where it gets in.
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
    Good,
    GoodInXApiKey,
}

impl Identity {
    const ALL: [Identity; 7] = [
        Identity::None,
        Identity::Unknown,
        Identity::Prefix,
        Identity::Empty,
        Identity::Basic,
        Identity::Good,
        Identity::GoodInXApiKey,
    ];

    fn header(self) -> Option<(&'static str, String)> {
        match self {
            Identity::None => None,
            Identity::Unknown => Some(("authorization", "Bearer sk-unknown".to_owned())),
            Identity::Prefix => Some(("authorization", format!("Bearer {}", &KEY[..KEY.len() - 1]))),
            Identity::Empty => Some(("authorization", "Bearer ".to_owned())),
            Identity::Basic => Some(("authorization", format!("Basic {KEY}"))),
            Identity::Good => Some(("authorization", format!("Bearer {KEY}"))),
            Identity::GoodInXApiKey => Some(("x-api-key", KEY.to_owned())),
        }
    }

    fn has_key(self) -> bool {
        matches!(self, Identity::Good | Identity::GoodInXApiKey)
    }
}

/// Whom a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Everybody,
    Key,
}
use Access::{Everybody, Key};

impl Access {
    fn admits(self, identity: Identity) -> bool {
        match self {
            Everybody => true,
            Key => identity.has_key(),
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
    ("GET", "/props", Key, 200),
    ("GET", "/slots", Key, 200),
    ("GET", "/v1/key", Key, 404),
    ("GET", "/lora-adapters", Key, 200),
    ("POST", "/lora-adapters", Key, 400),
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

async fn server() -> Server {
    Server::with(|setup| {
        setup.key(KEY);
        setup.http.expose_slots = true;
        // Here wrong keys are the point.
        setup.http.clients.failures_max = 0;
    })
    .await
}

async fn ask(server: &Server, method: &str, path: &str, identity: Identity) -> u16 {
    let path = path.replace("{id}", "x").replace("{digest}", "x");
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let mut request = server.client.request(method.clone(), server.url(&path));
    if method == Method::POST {
        request = request.header("content-type", "application/json").body("{}");
    }
    if let Some((name, value)) = identity.header() {
        request = request.header(name, value);
    }
    request.send().await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn every_route_has_a_row_and_every_row_a_route() {
    let server = server().await;
    let document = server.get("/openapi.json").await.json();
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
    let server = server().await;
    let mut faults = Vec::new();
    for (method, path, access, status) in ROWS {
        for identity in Identity::ALL {
            let wanted = if access.admits(identity) { *status } else { 401 };
            let got = ask(&server, method, path, identity).await;
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
    let server = server().await;
    for path in ["/nope", "/v1", "/v1/nope", "/admin", "/key/generate", "//v1/models", "/v1/models%2f", "/livez/x"] {
        assert_eq!(ask(&server, "GET", path, Identity::None).await, 401, "{path}");
        assert_eq!(ask(&server, "GET", path, Identity::Good).await, 404, "{path}");
    }
    let paths: BTreeSet<&str> = ROWS.iter().filter(|row| row.2 == Key).map(|row| row.1).collect();
    for path in paths {
        for method in ["PUT", "PATCH", "TRACE", "DELETE", "HEAD", "QUERY"] {
            assert_eq!(ask(&server, method, path, Identity::Unknown).await, 401, "{method} {path}");
        }
    }
}
