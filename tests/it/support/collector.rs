//! A small collector of traces: it reads OTLP's protobuf and keeps what it got.

use super::PATIENCE;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

#[derive(Default)]
pub struct Got {
    pub n_requests: usize,
    pub headers: HeaderMap,
    pub resource: Vec<KeyValue>,
    pub spans: Vec<Span>,
    pub bytes: Vec<u8>,
}

/// What the n-th request is answered with, from 0.
pub type Answer = fn(usize) -> Response;

pub struct Collector {
    pub endpoint: String,
    got: Arc<Mutex<Got>>,
    serving: JoinHandle<()>,
}

/// It took all.
pub fn took(_: usize) -> Response {
    protobuf(None)
}

pub fn protobuf(n_rejected: Option<i64>) -> Response {
    let partial = |rejected_spans| ExportTracePartialSuccess { rejected_spans, error_message: "no".to_owned() };
    let body = ExportTraceServiceResponse { partial_success: n_rejected.map(partial) }.encode_to_vec();
    ([("content-type", "application/x-protobuf")], body).into_response()
}

impl Collector {
    pub async fn start() -> Self {
        Self::answering(took).await
    }

    pub async fn answering(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("a bound socket"));
        let got: Arc<Mutex<Got>> = Arc::default();
        let router = Router::new().fallback(take).with_state((Arc::clone(&got), answer));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { endpoint, got, serving }
    }

    pub fn look<T>(&self, look: impl FnOnce(&Got) -> T) -> T {
        look(&self.got.lock().expect("no panic"))
    }

    /// All spans, once there are `n`.
    pub async fn spans(&self, n: usize) -> Vec<Span> {
        let started = Instant::now();
        loop {
            let spans = self.look(|got| got.spans.clone());
            if spans.len() >= n {
                assert_eq!(spans.len(), n, "{:#?}", spans.iter().map(|span| &span.name).collect::<Vec<_>>());
                return spans;
            }
            assert!(started.elapsed() < PATIENCE, "{} of {n} spans", spans.len());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn take(
    State((got, answer)): State<(Arc<Mutex<Got>>, Answer)>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(uri.path(), "/v1/traces");
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let n = {
        let mut got = got.lock().expect("no panic");
        got.n_requests += 1;
        got.headers = headers;
        got.n_requests - 1
    };
    let response = answer(n);
    if response.status() == StatusCode::OK {
        let request = ExportTraceServiceRequest::decode(body.clone()).expect("OTLP's protobuf");
        let mut got = got.lock().expect("no panic");
        got.bytes.extend_from_slice(&body);
        for of_resource in request.resource_spans {
            got.resource = of_resource.resource.expect("a resource").attributes;
            got.spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    response
}

/// One attribute as JSON, null where there is none.
pub fn attribute(attributes: &[KeyValue], key: &str) -> serde_json::Value {
    let found: Vec<_> = attributes.iter().filter(|pair| pair.key == key).collect();
    assert!(found.len() < 2, "{key} is said twice");
    found.first().and_then(|pair| pair.value.as_ref()).map_or(serde_json::Value::Null, json)
}

fn json(value: &AnyValue) -> serde_json::Value {
    match value.value.as_ref().expect("a value") {
        Value::StringValue(text) => text.as_str().into(),
        Value::BoolValue(yes) => (*yes).into(),
        Value::IntValue(n) => (*n).into(),
        Value::DoubleValue(n) => (*n).into(),
        Value::ArrayValue(array) => array.values.iter().map(json).collect(),
        other => unreachable!("{other:?}"),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
