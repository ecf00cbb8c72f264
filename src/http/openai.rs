//! Handlers of OpenAI's API: extract, read, ask the gateway, write.

use super::App;
use super::body::JsonBody;
use super::edge::{list_ignored, until_cut};
use super::error::{ApiError, Asked};
use super::sse::{self, Stream};
use crate::dialect::openai::{self, Chat, ChatChunks, Completion, Head, ModelEntry, TextChunks};
use crate::dialect::{Ignored, Watched};
use crate::gateway::{self, Caller, Listed, ModelStatus, Running, random_name};
use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderValue, header};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) async fn chat(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::chat_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let Chat { request, style, places } = read.request;
    let refused = |error| ApiError::of(error, Asked::Messages).renamed(|name| places.name(name));
    let stream = request.stream;
    let running = until_cut(&app, app.gateway.chat(&caller, request)).await?.map_err(refused)?;
    let head = head("chatcmpl-", &running);
    let mut response = if stream {
        let n_choices = running.n_choices();
        let chunks = Watched::new(ChatChunks::new(&head, n_choices, style), n_choices, style.wanted);
        sse::response(Stream { running, chunks, asked: Asked::Messages }, &app)
    } else {
        let (answers, usage) = until_cut(&app, running.collect()).await?.map_err(refused)?;
        json(openai::chat_response(&head, &answers, &usage, style))
    };
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

pub(super) async fn complete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::completion_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let Completion { request, style, constraint } = read.request;
    let stream = request.stream;
    let refused = refused_prompt(constraint);
    let running = until_cut(&app, app.gateway.complete(&caller, request)).await?.map_err(&refused)?;
    let head = head("cmpl-", &running);
    let mut response = if stream {
        let (n_choices, wanted) = (running.n_choices(), style.wanted);
        let chunks = Watched::new(TextChunks::new(&head, n_choices, style), n_choices, wanted);
        sse::response(Stream { running, chunks, asked: Asked::Prompt }, &app)
    } else {
        let (answers, usage) = until_cut(&app, running.collect()).await?.map_err(&refused)?;
        json(openai::completion_response(&head, &answers, &usage, &style))
    };
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

/// Says no to a completion whose constraint is in `field`.
pub(super) fn refused_prompt(field: Option<String>) -> impl Fn(gateway::Error) -> ApiError {
    move |error| ApiError::of(error, Asked::Prompt).renamed(|name| openai::constraint_name(field.as_deref(), name))
}

/// How many tokens a chat would have, without answering it.
pub(super) async fn input_tokens(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(openai::chat_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let Chat { request, places, .. } = read.request;
    let counted = until_cut(&app, app.gateway.count(&caller, request.model.as_deref(), request.prompt)).await?;
    let n_tokens = counted.map_err(|error| ApiError::of(error, Asked::Messages).renamed(|name| places.name(name)))?;
    let mut response = json(openai::input_tokens_response(n_tokens));
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

/// Every model that the caller may use under its id and, as models of their own, its other names: clients let people
/// choose from this list. Patterns are left out, since nobody can ask for `gpt-*`.
pub(super) async fn models(State(app): State<App>, Extension(caller): Extension<Caller>) -> Result<Response, ApiError> {
    let named = app.gateway.models_for(&caller.principal);
    refuse_while_loading(&app, named.iter().map(|(_, model)| model))?;
    let local = named.iter().flat_map(|(names, model)| names.iter().map(|name| entry(name, model)));
    let remote = app.gateway.remote_names(&caller.principal);
    let entries: Vec<ModelEntry> = local.chain(remote.iter().map(|name| remote_entry(name))).collect();
    Ok(json(openai::model_list(&entries)))
}

/// While nothing is there yet of what is asked about, a client that retries is better off than one that reads half.
fn refuse_while_loading<'a>(app: &App, models: impl Iterator<Item = &'a Listed>) -> Result<(), ApiError> {
    let Some(refusal) = app.gateway.unready().and_then(|(_, state)| state.refusal()) else { return Ok(()) };
    let mut models = models.peekable();
    if models.peek().is_some() && models.all(|model| model.status == ModelStatus::Loading) {
        return Err(ApiError::of(refusal.into(), Asked::Nothing));
    }
    Ok(())
}

/// The model that any of its names means, under its id.
pub(super) async fn model(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let model = app.gateway.listed(&caller, Some(&name)).map_err(|error| ApiError::of(error, Asked::Nothing))?;
    refuse_while_loading(&app, std::iter::once(&model))?;
    Ok(json(openai::model_object(entry(&model.config.id, &model))))
}

/// Of an alias that another server answers to: nothing is known of its model.
fn remote_entry(name: &str) -> ModelEntry<'_> {
    ModelEntry { name, id: name, created: 0, description: None, status: "loaded" }
}

fn entry<'a>(name: &'a str, model: &'a Listed) -> ModelEntry<'a> {
    ModelEntry {
        name,
        id: &model.config.id,
        created: model.config.n_created,
        description: model.description.as_deref(),
        status: match model.status {
            ModelStatus::Loaded => "loaded",
            ModelStatus::Loading => "loading",
            ModelStatus::Unloaded => "unloaded",
            ModelStatus::Failed => "failed",
        },
    }
}

pub(super) fn refuse_if_strict(app: &App, ignored: &Ignored) -> Result<(), ApiError> {
    if app.gateway.config().strict {
        ignored.refuse()?;
    }
    Ok(())
}

pub(super) fn json(body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn head(prefix: &str, running: &Running) -> Head {
    Head {
        id: random_name(prefix),
        created: unix_now(),
        model: running.model().to_owned(),
        fingerprint: running.fingerprint().to_owned(),
    }
}
