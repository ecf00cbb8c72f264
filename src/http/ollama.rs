//! Handlers of Ollama's API.

use super::App;
use super::body::JsonBody;
use super::edge::{list_ignored, until_cut};
use super::error::{ApiError, Asked};
use super::family::{Family, json_type};
use super::openai::refuse_if_strict;
use super::sse::{self, Stream};
use crate::dialect::ollama::{self, Embed, EmbedForm, Head, KeepAlive, Rows, Served, Shape, Wanted};
use crate::dialect::{Answer, MediaPlaces, Read};
use crate::engine::{Event, Failure, Vectors};
use crate::gateway::{self, Caller, Listed, ModelStatus, Running};
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
    let model = request.model.clone();
    let answering = Answering {
        app: &app,
        caller: &caller,
        model: model.as_deref(),
        started,
        shape: Shape::Chat,
        stream: request.stream,
        with_logprobs: request.output.top_logprobs.is_some(),
        keep_alive: chat.keep_alive,
        media: chat.media,
    };
    let mut response = if request.prompt.messages.is_empty() {
        answering.idle().await?
    } else {
        answering.refuse_media().await?;
        let running = until_cut(&app, app.gateway.chat(&caller, request)).await?;
        let running = running.map_err(answering.refusal())?;
        answering.answer(running).await?
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
        caller: &caller,
        started,
        model: request.model.as_deref(),
        shape: Shape::Generate,
        stream: request.stream,
        with_logprobs: request.with_logprobs,
        keep_alive: request.keep_alive,
        media: request.media,
    };
    answering.refuse_media().await?;
    let running = match request.wanted {
        Wanted::Nothing => None,
        Wanted::Chat(chat) => Some(until_cut(&app, app.gateway.chat(&caller, *chat)).await?),
        Wanted::Text(text) => Some(until_cut(&app, app.gateway.complete(&caller, *text)).await?),
    };
    let mut response = match running {
        None => answering.idle().await?,
        Some(running) => {
            let running = running.map_err(answering.refusal())?;
            answering.answer(running).await?
        }
    };
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

/// How one request is answered.
struct Answering<'a> {
    app: &'a App,
    caller: &'a Caller,
    model: Option<&'a str>,
    started: Duration,
    shape: Shape,
    stream: bool,
    with_logprobs: bool,
    keep_alive: Option<KeepAlive>,
    media: MediaPlaces,
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
        let (head, asked, refused) = (self.head(running.model()), self.asked(), self.refusal());
        self.keep()?;
        if self.stream {
            return Ok(sse::response(Stream { running, chunks: Rows::new(head), asked }, self.app));
        }
        let whole = until_cut(self.app, whole(running, &head)).await?;
        Ok(json(whole.map_err(refused)?))
    }

    /// Nothing was asked but that the model be there, or gone.
    async fn idle(self) -> Result<Response, ApiError> {
        let reason = if self.keep_alive == Some(KeepAlive::For(Duration::ZERO)) { "unload" } else { "load" };
        let gateway = &self.app.gateway;
        let listed = gateway.listed(self.caller, self.model).map_err(refusal(self.asked()))?;
        // Held while the wish is noted.
        let _target = match reason {
            "load" => Some(
                until_cut(self.app, gateway.target(self.caller, self.model)).await?.map_err(refusal(self.asked()))?,
            ),
            _ => None,
        };
        self.keep()?;
        let head = self.head(&listed.config.id);
        let mut response = json(ollama::idle_response(&head, reason));
        if self.stream {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(ollama::NDJSON));
        }
        Ok(response)
    }

    fn keep(&self) -> Result<(), ApiError> {
        keep(self.app, self.caller, self.model, self.keep_alive, self.asked())
    }

    async fn refuse_media(&self) -> Result<(), ApiError> {
        // Which target of an alias answers, and what it takes, is not known here.
        if self.media.is_empty() || self.app.gateway.is_routed(self.model) {
            return Ok(());
        }
        let target = until_cut(self.app, self.app.gateway.target(self.caller, self.model)).await?;
        Ok(self.media.refuse(&target.map_err(refusal(self.asked()))?.description.media)?)
    }

    /// The gateway's or the engine's refusal, an image named where the client put it.
    fn refusal(&self) -> impl Fn(gateway::Error) -> ApiError + use<> {
        let (media, asked) = (self.media.clone(), self.asked());
        let name = move |field: &str| media.name(field).map_or_else(|| ollama::field_name(field), str::to_owned);
        move |error| ApiError::of(error, asked).renamed(&name)
    }

    fn asked(&self) -> Asked {
        match self.shape {
            Shape::Chat => Asked::Messages,
            Shape::Generate => Asked::Prompt,
        }
    }
}

/// The whole answer, whose size the context bounds.
async fn whole(running: Running, head: &Head) -> Result<Vec<u8>, gateway::Error> {
    let mut running = running.as_whole();
    let mut answer = Answer::default();
    loop {
        match running.next().await {
            Some((_, Event::Delta(delta))) => answer.push(delta),
            Some((_, Event::Done(done))) => {
                answer.finish = done.finish;
                return Ok(ollama::whole_response(head, &answer, &running.usage(), &done.timings));
            }
            Some((_, Event::Failed(failure))) => return Err(running.error(failure)),
            Some(_) => {}
            None => {
                return Err(Failure::Internal("a generation ended without a word; this is a bug".to_owned()).into());
            }
        }
    }
}

pub(super) async fn embed(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    vectors(app, &caller, body.read(ollama::embed_request).await?, now()).await
}

pub(super) async fn embeddings(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    vectors(app, &caller, body.read(ollama::embeddings_request).await?, now()).await
}

async fn vectors(app: App, caller: &Caller, read: Read<Embed>, started: Duration) -> Result<Response, ApiError> {
    refuse_if_strict(&app, &read.ignored)?;
    let Embed { model, request, form, keep_alive } = read.request;
    let asked = Asked::Input;
    let target = until_cut(&app, app.gateway.target(caller, model.as_deref())).await?.map_err(refusal(asked))?;
    let load = now().saturating_sub(started);
    keep(&app, caller, model.as_deref(), keep_alive, asked)?;
    form.check(target.description.n_embd_out)?;
    let vectors = if request.inputs.is_empty() {
        Vectors::default()
    } else {
        until_cut(&app, app.gateway.vectors(caller, &target, request)).await?.map_err(refusal(asked))?
    };
    let total = now().saturating_sub(started);
    let mut response = json(match form {
        EmbedForm::Raw => ollama::embeddings_response(&vectors),
        EmbedForm::Normalised { .. } => ollama::embed_response(target.id(), &vectors, form, load, total),
    });
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

/// How long the model stays, where the client has a wish; to be called while the request holds it.
fn keep(
    app: &App,
    caller: &Caller,
    model: Option<&str>,
    wish: Option<KeepAlive>,
    asked: Asked,
) -> Result<(), ApiError> {
    let keep_alive = match wish {
        None => return Ok(()),
        Some(KeepAlive::Forever) => gateway::KeepAlive::Forever,
        Some(KeepAlive::For(time)) => gateway::KeepAlive::For(time),
    };
    app.gateway.touch(caller, model, keep_alive).map_err(refusal(asked))
}

pub(super) async fn tags(State(app): State<App>, Extension(caller): Extension<Caller>) -> Result<Response, ApiError> {
    listed(&app, &caller, ollama::tags_response, |_| true)
}

pub(super) async fn ps(State(app): State<App>, Extension(caller): Extension<Caller>) -> Result<Response, ApiError> {
    listed(&app, &caller, ollama::ps_response, |model| model.status == ModelStatus::Loaded)
}

/// The models of which something is known; where none is, why.
fn listed(
    app: &App,
    caller: &Caller,
    write: fn(&[Served]) -> Vec<u8>,
    is_meant: fn(&Listed) -> bool,
) -> Result<Response, ApiError> {
    let all: Vec<Listed> = app.gateway.models_for(&caller.principal).into_iter().map(|(_, listed)| listed).collect();
    let known: Vec<Served> = all.iter().filter(|model| is_meant(model)).filter_map(served).collect();
    if known.is_empty() && !all.is_empty() && all.iter().all(|model| model.description.is_none()) {
        app.gateway.description().map_err(refusal(Asked::Nothing))?;
    }
    Ok(json(write(&known)))
}

fn served(listed: &Listed) -> Option<Served<'_>> {
    Some(Served {
        id: &listed.config.id,
        n_created: listed.config.n_created,
        model: listed.description.as_deref()?,
        expires_at: listed.expires_in.map(|left| (now() + left).as_secs()),
    })
}

pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(ollama::named_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let name = read.request.as_deref();
    let mut model = app.gateway.listed(&caller, name).map_err(refusal(Asked::Nothing))?;
    if model.description.is_none() {
        model.description = Some(app.gateway.model(&caller, name).map_err(refusal(Asked::Nothing))?);
    }
    let body = served(&model).map(|served| ollama::show_response(&served));
    let mut response = json(body.ok_or_else(ApiError::internal)?);
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

pub(super) async fn version() -> Response {
    json(ollama::version_response())
}

/// What is served is there; nothing else can be had.
pub(super) async fn pull(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(ollama::pull_request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let (name, stream) = read.request;
    match app.gateway.listed(&caller, name.as_deref()) {
        Ok(_) => {}
        Err(gateway::Error::UnknownModel { .. }) => return Err(refuse(State(app), Extension(caller)).await),
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
pub(super) async fn refuse(State(app): State<App>, Extension(caller): Extension<Caller>) -> ApiError {
    let models = app.gateway.models_for(&caller.principal);
    let names: Vec<&str> = models.iter().filter_map(|(names, _)| names.first()).map(String::as_str).collect();
    let what = if names.len() == 1 { "one model" } else { "its own models" };
    let names = names.join(", ");
    ApiError::forbidden(&format!("this server serves {what} ({names}); models can't be managed over the API"))
}

fn refusal(asked: Asked) -> impl Fn(gateway::Error) -> ApiError {
    move |error| ApiError::of(error, asked).renamed(ollama::field_name)
}

fn json(body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, json_type(Family::Ollama));
    response
}
