//! The OpenAPI document: the table of operations with the schemas of their types.

use super::operations::{Answer, Envelope, Operation, operations};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

const ABOUT: &str = "One server, several families of clients: OpenAI's API with the extras of llama.cpp and vLLM, and the \
APIs of other servers beside it. Every field of a request works, is refused with a 400 that names it, or, when nobody \
here knows it, is listed in the answer's header `x-hearth-ignored`. `null` means the same as leaving a field out.";

/// Statuses with which any operation may answer instead of its own.
const REFUSALS: [(&str, &str); 11] = [
    ("400", "The body or one of its fields is refused; the error names the field."),
    ("401", "No valid API key was given."),
    ("403", "The Host or Origin may not use this server."),
    ("404", "There is no such model, or no such thing."),
    ("408", "The body did not arrive in time."),
    ("413", "The body is too large."),
    ("415", "The body is no JSON by its Content-Type."),
    ("421", "The Host is none of this server's names."),
    ("429", "Too many requests or wrong keys; `Retry-After` says when to come again."),
    ("500", "The server failed on this request."),
    ("503", "Loading, full or shutting down; `Retry-After` says when to come again."),
];

/// With `/slots` where that is served.
pub(super) fn document(expose_slots: bool) -> Value {
    // References as OpenAPI has them; 3.1 takes the rest of JSON Schema 2020-12 as it is.
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = SchemaGenerator::new(settings);
    let mut paths: Map<String, Value> = Map::new();
    let operations = operations().into_iter().filter(|operation| expose_slots || operation.path != "/slots");
    let operations: Vec<Operation> = operations.collect();
    for operation in &operations {
        put(&mut paths, operation.path, operation, operation_object(operation, &mut generator));
    }
    for operation in &operations {
        for alias in &operation.aliases {
            put(&mut paths, alias, operation, alias_object(operation, alias, &mut generator));
        }
    }
    let responses = refusals(&mut generator);
    let schemas: Map<String, Value> = generator.take_definitions(true).into_iter().collect();
    json!({
        "openapi": "3.1.0",
        "info": { "title": "hearth", "version": env!("CARGO_PKG_VERSION"), "description": ABOUT },
        "servers": [{ "url": "/" }],
        "security": [{}, { "bearer": [] }, { "x-api-key": [] }],
        "tags": tags(&operations),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses,
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "description": "Where the server has API keys." },
                "x-api-key": { "type": "apiKey", "in": "header", "name": "x-api-key" },
            },
        },
    })
}

fn put(paths: &mut Map<String, Value>, path: &str, operation: &Operation, object: Value) {
    // A wildcard of the router is a parameter here.
    let path = path.replace("{*", "{");
    let item = paths.entry(path).or_insert_with(|| json!({}));
    item[operation.method] = object;
}

fn tags(operations: &[Operation]) -> Vec<Value> {
    let mut tags: Vec<Value> = Vec::new();
    for operation in operations {
        let tag = json!({ "name": operation.tag });
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

/// `post` and `/v1/chat/completions` → `post_v1_chat_completions`.
fn id(method: &str, path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.fold(method.to_owned(), |id, word| id + "_" + word)
}

fn operation_object(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut object = json!({
        "operationId": id(operation.method, operation.path),
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": responses(operation, generator),
    });
    if !operation.about.is_empty() {
        object["description"] = operation.about.into();
    }
    let parameters = parameters(operation);
    if !parameters.is_empty() {
        object["parameters"] = parameters.into();
    }
    if let Some(request) = operation.request {
        let schema = request(generator).to_value();
        object["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if operation.is_public {
        object["security"] = json!([]);
    }
    object
}

/// The same operation under another path.
fn alias_object(operation: &Operation, alias: &str, generator: &mut SchemaGenerator) -> Value {
    let mut object = operation_object(operation, generator);
    object["operationId"] = id(operation.method, alias).into();
    object["summary"] = format!("The same as {}.", operation.path).into();
    object["x-hearth-alias-of"] = operation.path.into();
    object
}

fn parameters(operation: &Operation) -> Vec<Value> {
    let names = operation.path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let in_path = names.map(|name| {
        let name = name.trim_start_matches('*');
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } })
    });
    let in_query = operation.query.iter().map(
        |(name, about)| json!({ "name": name, "in": "query", "description": about, "schema": { "type": "string" } }),
    );
    in_path.chain(in_query).collect()
}

fn responses(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut content = Map::new();
    match operation.answer {
        Answer::Json(schema) => {
            content.insert("application/json".to_owned(), json!({ "schema": schema(generator).to_value() }));
        }
        Answer::Text(kind) => {
            content.insert(kind.to_owned(), json!({ "schema": { "type": "string" } }));
        }
        Answer::Refused => {}
    }
    if let Some((kind, event)) = operation.events {
        let event = event(generator).to_value();
        let schema = json!({ "description": "With `stream`, one of these at a time.", "x-event": event });
        content.insert(kind.to_owned(), json!({ "schema": schema }));
    }
    let mut responses = json!({});
    if !matches!(operation.answer, Answer::Refused) {
        responses["200"] = json!({ "description": "The answer.", "content": content });
    }
    if let Some(envelope) = operation.errors {
        for (status, _) in REFUSALS {
            let has_body = operation.request.is_some();
            // Anthropic's word for a server that can't take more is 529.
            let status = if status == "503" && matches!(envelope, Envelope::Anthropic) { "529" } else { status };
            if has_body || !matches!(status, "408" | "413" | "415") {
                let name = format!("{}{status}", envelope.name());
                responses[status] = json!({ "$ref": format!("#/components/responses/{name}") });
            }
        }
    }
    responses
}

fn refusals(generator: &mut SchemaGenerator) -> Value {
    let mut responses = json!({});
    for envelope in Envelope::ALL {
        let schema = envelope.schema(generator).to_value();
        for (status, about) in REFUSALS {
            let status = if status == "503" && matches!(envelope, Envelope::Anthropic) { "529" } else { status };
            let content = json!({ "application/json": { "schema": schema } });
            let mut response = json!({ "description": about, "content": content });
            if matches!(status, "429" | "503" | "529") {
                response["headers"] = json!({
                    "Retry-After": { "description": "Seconds.", "schema": { "type": "integer", "minimum": 1 } },
                });
            }
            responses[format!("{}{status}", envelope.name())] = response;
        }
    }
    responses
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// axum lists its routes nowhere but here: `… "/v1/models" …`.
    fn routes(expose_slots: bool) -> BTreeSet<String> {
        let shown = format!("{:?}", crate::http::router::routes(expose_slots));
        let paths = shown.split('"').filter(|part| part.starts_with('/') && !part.contains("__private"));
        paths.map(|path| path.replace("{*", "{")).collect()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        for expose_slots in [false, true] {
            let document = document(expose_slots);
            let described: BTreeSet<String> =
                document["paths"].as_object().into_iter().flatten().map(|it| it.0.clone()).collect();
            assert!(described.len() > 20);
            assert_eq!(described, routes(expose_slots));
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let document = document(true);
        let items =
            document["paths"].as_object().into_iter().flatten().flat_map(|(_, item)| item.as_object()).flatten();
        let ids: Vec<&str> = items.filter_map(|(_, operation)| operation["operationId"].as_str()).collect();
        let unique: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), unique.len());
    }
}
