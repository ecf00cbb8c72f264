//! Spans → OTLP's protobuf.

use crate::telemetry::semconv::resource;
use crate::telemetry::spans::{Span, SpanKind, Value};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::common::v1::{self as common, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as trace;
use prost::Message;
use std::time::{SystemTime, UNIX_EPOCH};

/// Says that whether a parent is in another process is known, and that it is (trace.proto, `SpanFlags`).
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

pub(super) fn request(service: &str, instance: &str, spans: &[Span]) -> Vec<u8> {
    let of_process = [
        (resource::SERVICE_NAME, service),
        (resource::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
        (resource::SERVICE_INSTANCE_ID, instance),
    ];
    let attributes = of_process.map(|(key, text)| pair(key, AnyValue::StringValue(text.to_owned()))).to_vec();
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    let of_scope =
        trace::ScopeSpans { scope: Some(scope), spans: spans.iter().map(span).collect(), ..Default::default() };
    let of_resource = trace::ResourceSpans {
        resource: Some(Resource { attributes, ..Default::default() }),
        scope_spans: vec![of_scope],
        ..Default::default()
    };
    ExportTraceServiceRequest { resource_spans: vec![of_resource] }.encode_to_vec()
}

pub(super) fn rejected(answer: &[u8]) -> usize {
    let partial = ExportTraceServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
    partial.map_or(0, |partial| usize::try_from(partial.rejected_spans).unwrap_or_default())
}

fn span(span: &Span) -> trace::Span {
    let kind = match span.kind {
        SpanKind::Server => trace::span::SpanKind::Server,
        SpanKind::Client => trace::span::SpanKind::Client,
        SpanKind::Internal => trace::span::SpanKind::Internal,
    };
    let code = if span.has_failed { trace::status::StatusCode::Error } else { trace::status::StatusCode::Unset };
    // Only the parent of the request's own span lives elsewhere.
    let is_remote = span.parent.is_some() && span.parent == span.context.parent;
    let event = |(name, at): &(&'static str, SystemTime)| trace::span::Event {
        time_unix_nano: nanos(*at),
        name: (*name).to_owned(),
        ..Default::default()
    };
    trace::Span {
        trace_id: span.context.trace.bytes().to_vec(),
        span_id: span.id.bytes().to_vec(),
        parent_span_id: span.parent.map(|parent| parent.bytes().to_vec()).unwrap_or_default(),
        trace_state: span.context.state.clone().unwrap_or_default(),
        flags: span.context.flags() | HAS_IS_REMOTE | if is_remote { IS_REMOTE } else { 0 },
        name: span.name.clone(),
        kind: kind.into(),
        start_time_unix_nano: nanos(span.start),
        end_time_unix_nano: nanos(span.end.max(span.start)),
        attributes: span.attributes.iter().map(|(key, value)| pair(key, any(value))).collect(),
        events: span.events.iter().map(event).collect(),
        status: Some(trace::Status { code: code.into(), message: String::new() }),
        ..Default::default()
    }
}

fn any(value: &Value) -> AnyValue {
    match value {
        Value::Text(text) => AnyValue::StringValue(text.clone()),
        Value::Texts(texts) => {
            let value = |text: &&str| common::AnyValue { value: Some(AnyValue::StringValue((*text).to_owned())) };
            AnyValue::ArrayValue(ArrayValue { values: texts.iter().map(value).collect() })
        }
        Value::Whole(n) => AnyValue::IntValue(*n),
        Value::Decimal(n) => AnyValue::DoubleValue(*n),
        Value::Yes(yes) => AnyValue::BoolValue(*yes),
    }
}

fn pair(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(common::AnyValue { value: Some(value) }), ..Default::default() }
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
