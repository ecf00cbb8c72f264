//! Handlers of Ollama's API.

use super::App;
use super::body::JsonBody;
use super::edge::{list_ignored, until_cut};
use super::error::{ApiError, Asked};
use super::family::{Family, json_type};
use super::openai::refuse_if_strict;
use super::sse::{self, Stream};
use crate::dialect::Answer;
use crate::dialect::ollama::{self, Head, KeepAlive, Rows, Served, Shape, Wanted};
use crate::engine::{Event, Failure};
use crate::gateway::{self, Caller, Running};
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderValue, header};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

pub(super) async fn chat(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let started = now();
    let read = body.read(ollama::chat_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let chat = read.request;
    let request = chat.request;
    let answering = Answering {
        app: &app,
        started,
        shape: Shape::Chat,
        stream: request.stream,
        with_logprobs: request.output.top_logprobs.is_some(),
        keep_alive: chat.keep_alive,
    };
    let description = app.gateway.model(request.model.as_deref()).map_err(refusal(Asked::Messages))?;
    let mut response = if request.prompt.messages.is_empty() {
        answering.idle()?
    } else {
        chat.media.refuse(&description.media)?;
        let running = until_cut(&app, app.gateway.chat(&caller, request)).await?;
        answering.answer(running.map_err(refusal(Asked::Messages))?).await?
    };
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

pub(super) async fn generate(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let started = now();
    let read = body.read(ollama::generate_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let request = read.request;
    let answering = Answering {
        app: &app,
        started,
        shape: Shape::Generate,
        stream: request.stream,
        with_logprobs: request.with_logprobs,
        keep_alive: request.keep_alive,
    };
    let description = app.gateway.model(request.model.as_deref()).map_err(refusal(Asked::Prompt))?;
    request.media.refuse(&description.media)?;
    let running = match request.wanted {
        Wanted::Nothing => None,
        Wanted::Chat(chat) => Some(until_cut(&app, app.gateway.chat(&caller, *chat)).await?),
        Wanted::Text(text) => Some(until_cut(&app, app.gateway.complete(&caller, *text)).await?),
    };
    let mut response = match running {
        None => answering.idle()?,
        Some(running) => answering.answer(running.map_err(refusal(Asked::Prompt))?).await?,
    };
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

/// How one request is answered.
struct Answering<'a> {
    app: &'a App,
    started: Duration,
    shape: Shape,
    stream: bool,
    with_logprobs: bool,
    keep_alive: Option<KeepAlive>,
}

impl Answering<'_> {
    fn head(&self, model: &str) -> Head {
        Head {
            shape: self.shape,
            model: model.to_owned(),
            with_logprobs: self.with_logprobs,
            now,
            started: self.started,
            load: now().saturating_sub(self.started),
        }
    }

    async fn answer(self, running: Running) -> Result<Response, ApiError> {
        let head = self.head(running.model());
        let asked = match self.shape {
            Shape::Chat => Asked::Messages,
            Shape::Generate => Asked::Prompt,
        };
        if self.stream {
            return Ok(sse::response(Stream { running, chunks: Rows::new(head), asked }, self.app));
        }
        let whole = until_cut(self.app, whole(running, &head)).await?;
        Ok(json(whole.map_err(refusal(asked))?))
    }

    /// Nothing was asked but that the model be there, or gone.
    fn idle(self) -> Result<Response, ApiError> {
        let is_over = self.keep_alive == Some(KeepAlive::For(Duration::ZERO));
        let head = self.head(&self.app.gateway.config().model_id);
        let mut response = json(ollama::idle_response(&head, if is_over { "unload" } else { "load" }));
        if self.stream {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(ollama::NDJSON));
        }
        Ok(response)
    }
}

/// The whole answer, whose size the context bounds.
async fn whole(mut running: Running, head: &Head) -> Result<Vec<u8>, gateway::Error> {
    let mut answer = Answer::default();
    loop {
        match running.next().await {
            Some((_, Event::Delta(delta))) => answer.push(delta),
            Some((_, Event::Done(done))) => {
                answer.finish = done.finish;
                return Ok(ollama::whole_response(head, &answer, &running.usage(), &done.timings));
            }
            Some((_, Event::Failed(failure))) => return Err(failure.into()),
            Some(_) => {}
            None => {
                return Err(Failure::Internal("a generation ended without a word; this is a bug".to_owned()).into());
            }
        }
    }
}

pub(super) async fn tags(State(app): State<App>) -> Result<Response, ApiError> {
    listed(&app, ollama::tags_response)
}

pub(super) async fn ps(State(app): State<App>) -> Result<Response, ApiError> {
    listed(&app, ollama::ps_response)
}

fn listed(app: &App, write: fn(&[Served]) -> Vec<u8>) -> Result<Response, ApiError> {
    let description = app.gateway.description().map_err(refusal(Asked::Nothing))?;
    let config = app.gateway.config();
    let served = Served { id: &config.model_id, n_created: config.n_created, model: &description, expires_at: None };
    Ok(json(write(&[served])))
}

pub(super) async fn show(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let read = body.read(ollama::named_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let description = app.gateway.model(read.request.as_deref()).map_err(refusal(Asked::Nothing))?;
    let config = app.gateway.config();
    let served = Served { id: &config.model_id, n_created: config.n_created, model: &description, expires_at: None };
    let mut response = json(ollama::show_response(&served));
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

pub(super) async fn version() -> Response {
    json(ollama::version_response())
}

/// What is served is there; nothing else can be had.
pub(super) async fn pull(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let read = body.read(ollama::pull_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let (name, stream) = read.request;
    match app.gateway.model(name.as_deref()) {
        Ok(_) => {}
        Err(gateway::Error::UnknownModel { .. }) => return Err(refuse(State(app)).await),
        Err(other) => return Err(refusal(Asked::Nothing)(other)),
    }
    let mut response = json(ollama::pull_rows(stream));
    if stream {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(ollama::NDJSON));
    }
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

/// Models are the operator's to choose, with files.
pub(super) async fn refuse(State(app): State<App>) -> ApiError {
    let id = &app.gateway.config().model_id;
    ApiError::forbidden(&format!("this server serves one model ({id}); models can't be managed over the API"))
}

fn refusal(asked: Asked) -> impl Fn(gateway::Error) -> ApiError {
    move |error| ApiError::of(error, asked).renamed(ollama::field_name)
}

fn json(body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, json_type(Family::Ollama));
    response
}
