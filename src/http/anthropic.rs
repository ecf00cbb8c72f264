//! Handlers of Anthropic's API.

use super::App;
use super::body::JsonBody;
use super::edge::{list_ignored, until_cut};
use super::error::{ApiError, Asked};
use super::openai::{json, refuse_if_strict};
use super::sse::{self, Stream};
use crate::chat::ChatRequest;
use crate::dialect::anthropic::{self, Head, MessageChunks, Messages};
use crate::dialect::{Fault, MediaPlaces, Read};
use crate::gateway::{self, Caller, random_name};
use axum::Extension;
use axum::extract::State;
use axum::response::Response;

pub(super) async fn messages(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (request, media, ignored) = read(&app, &caller, body, anthropic::messages_request).await?;
    let refused = refusal(media);
    let stream = request.stream;
    let stops = request.output.stop.clone();
    let running = until_cut(&app, app.gateway.chat(&caller, request)).await?;
    let running = running.map_err(&refused)?;
    let head = Head { id: random_name("msg_"), model: running.model().to_owned(), stops };
    let mut response = if stream {
        let chunks = MessageChunks::new(head, running.usage());
        sse::response(Stream { running, chunks, asked: Asked::Messages }, &app)
    } else {
        let answered = until_cut(&app, running.collect()).await?;
        let (answers, usage) = answered.map_err(&refused)?;
        json(anthropic::message_response(&head, &answers.into_iter().next().unwrap_or_default(), &usage))
    };
    list_ignored(response.headers_mut(), ignored);
    Ok(response)
}

pub(super) async fn count_tokens(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (request, media, ignored) = read(&app, &caller, body, anthropic::count_request).await?;
    let counted = until_cut(&app, app.gateway.count(&caller, request.model.as_deref(), request.prompt)).await?;
    let mut response = json(anthropic::count_response(counted.map_err(refusal(media))?));
    list_ignored(response.headers_mut(), ignored);
    Ok(response)
}

/// The request, where its images stand, and the header that lists what nobody knows of it.
async fn read(
    app: &App,
    caller: &Caller,
    body: JsonBody,
    reader: fn(&[u8]) -> Result<Read<Messages>, Fault>,
) -> Result<(ChatRequest, MediaPlaces, Option<String>), ApiError> {
    let Read { request: Messages { mut request, media }, ignored } = body.read(reader).await?;
    refuse_if_strict(app, &ignored)?;
    // Claude Code asks for several of Anthropic's models by their names; each means what is served.
    request.model = app.gateway.stand_in(request.model, "claude-*");
    // Which target of an alias answers, and what it takes, is not known here.
    if !media.is_empty() && !app.gateway.is_routed(request.model.as_deref()) {
        let target = until_cut(app, app.gateway.target(caller, request.model.as_deref())).await?;
        let target = target.map_err(refusal(MediaPlaces::default()))?;
        media.refuse(&target.description.media)?;
    }
    Ok((request, media, ignored.header()))
}

fn refusal(media: MediaPlaces) -> impl Fn(gateway::Error) -> ApiError {
    let name = move |field: &str| media.name(field).map_or_else(|| anthropic::field_name(field), str::to_owned);
    move |error| ApiError::of(error, Asked::Messages).renamed(&name)
}
