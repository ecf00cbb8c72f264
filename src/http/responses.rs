//! Handlers of OpenAI's Responses API, and where its answers are kept.

use super::App;
use super::body::JsonBody;
use super::edge::{list_ignored, until_cut};
use super::error::{ApiError, Asked};
use super::openai::{json, refuse_if_strict, unix_now};
use super::sse::{self, Stream};
use crate::chat::{ChatRequest, Delta, Usage};
use crate::dialect::responses::{self, Finished, Head, Item, ResponseChunks, Whole};
use crate::dialect::{Chunks, Fault, Problem, Read, Wanted, Watched};
use crate::engine::{Done, Event, Failure};
use crate::gateway::{self, Caller, ResponseStore, Running, StoredResponse, random_name};
use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use std::sync::Arc;

pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let read = body.read(responses::request).await?;
    refuse_if_strict(&app, &read.ignored)?;
    let (mut read, ignored) = (read.request, read.ignored);
    let id = random_name("resp_");
    let known = converse(&app, &caller, &mut read, id.strip_prefix("resp_").unwrap_or(&id))?;
    let keep = keep(&app, &caller, &mut read, known.prior, known.input)?;
    let stream = read.stream();
    let places = read.places.clone();
    let refused = |error| ApiError::of(error, Asked::Input).renamed(|name| places.name(name));
    let running = until_cut(&app, app.gateway.chat(&caller, known.chat)).await?.map_err(refused)?;
    let sampling = app.gateway.shown_sampling(&caller, read.model(), Default::default());
    read.echo.temperature.get_or_insert(sampling.temperature);
    read.echo.top_p.get_or_insert(sampling.top_p);
    let head = Head { id, created_at: unix_now(), model: running.model().to_owned(), clock: unix_now };
    let mut response = if stream {
        let wanted = read.wanted;
        let chunks = Keeping { chunks: ResponseChunks::new(head, read), keep };
        match wanted == Wanted::default() {
            true => sse::response(Stream { running, chunks, asked: Asked::Input }, &app),
            false => {
                let chunks = Watched::new(chunks, 1, wanted);
                sse::response(Stream { running, chunks, asked: Asked::Input }, &app)
            }
        }
    } else {
        let finished = until_cut(&app, collect(running, Whole::new(head, read))).await?;
        let finished = finished.map_err(refused)?;
        let body = finished.object.clone().into_bytes();
        if let Some(keep) = keep {
            keep.store(finished);
        }
        json(body)
    };
    list_ignored(response.headers_mut(), ignored.header());
    Ok(response)
}

/// How many tokens the input of the same request would have.
pub(super) async fn input_tokens(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let Read { mut request, ignored } = body.read(responses::request).await?;
    refuse_if_strict(&app, &ignored)?;
    let known = converse(&app, &caller, &mut request, "")?;
    let counted = until_cut(&app, app.gateway.count(&caller, request.model(), known.chat.prompt)).await?;
    let refused = |error| ApiError::of(error, Asked::Input).renamed(|name| request.places.name(name));
    let mut response = json(responses::input_tokens(counted.map_err(refused)?));
    list_ignored(response.headers_mut(), ignored.header());
    Ok(response)
}

type Params = Query<Vec<(String, String)>>;

pub(super) async fn retrieve(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Params,
) -> Result<Response, ApiError> {
    let stored = stored(&app, &caller, &id)?;
    if query.iter().any(|(key, value)| key == "stream" && value == "true") {
        let message = "stream is not supported here: a response that has ended is sent whole.";
        return Err(Fault::new("stream", "unsupported_parameter", message).into());
    }
    Ok(json(stored.object.clone().into_bytes()))
}

pub(super) async fn remove(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let store = app.gateway.responses();
    if !store.remove(caller.principal.partition(), &id) {
        return Err(unknown(&id));
    }
    if store.is_on_disk() {
        let store = Arc::clone(store);
        tokio::task::spawn_blocking(move || store.flush()).await.map_err(|_| ApiError::internal())?;
    }
    Ok(json(responses::deleted(&id)))
}

pub(super) async fn input_items(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Params,
) -> Result<Response, ApiError> {
    let stored = stored(&app, &caller, &id)?;
    let page = responses::page(query.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
    Ok(json(responses::item_list(&stored.input, &page)?))
}

pub(super) async fn cancel() -> ApiError {
    responses::cancelled_refusal().into()
}

fn stored(app: &App, caller: &Caller, id: &str) -> Result<Arc<StoredResponse>, ApiError> {
    app.gateway.responses().get(caller.principal.partition(), id).ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    let shown: String = id.chars().take(128).collect();
    ApiError::not_found("response_not_found", format!("Response with id {shown:?} not found."))
}

/// A request with all that it refers to.
struct Known {
    chat: ChatRequest,
    prior: Vec<Arc<Item>>,
    /// The input's items, complete.
    input: Vec<Arc<Item>>,
}

fn converse(app: &App, caller: &Caller, asked: &mut responses::Asked, base: &str) -> Result<Known, ApiError> {
    let (store, tenant) = (app.gateway.responses(), caller.principal.partition());
    let prior = match &asked.echo.previous_response_id {
        None => Vec::new(),
        Some(previous) => {
            let known = store.get(tenant, previous).ok_or_else(|| {
                let shown: String = previous.chars().take(128).collect();
                let message = format!("Previous response with id {shown:?} not found.");
                Fault::new("previous_response_id", "previous_response_not_found", message)
            })?;
            known.conversation()
        }
    };
    asked.resolve(|id| store.item(tenant, id)).map_err(|missing| {
        let message = format!("Item with id {:?} not found.", missing.id);
        ApiError::not_found("item_not_found", message).param(missing.param)
    })?;
    let (chat, input) = asked.converse(&prior, base)?;
    Ok(Known { chat, prior, input })
}

/// Where the answer goes when it is to be stored. What a server without a store answers says that it is not.
fn keep(
    app: &App,
    caller: &Caller,
    asked: &mut responses::Asked,
    prior: Vec<Arc<Item>>,
    input: Vec<Arc<Item>>,
) -> Result<Option<Keep>, ApiError> {
    let store = app.gateway.responses();
    if store.config().count_max == 0 {
        asked.echo.store = false;
    }
    if !asked.echo.store {
        return Ok(None);
    }
    // Half of it is left for the answer, which the context bounds.
    let n_bytes: usize = prior.iter().chain(&input).map(|item| item.n_bytes).sum();
    if !store.holds(n_bytes.saturating_mul(2)) {
        let message = format!(
            "store: the conversation has {n_bytes} bytes, and of {} at most half is kept for one; send \"store\": false.",
            store.config().bytes_max
        );
        return Err(Fault::new("store", "invalid_value", message).into());
    }
    Ok(Some(Keep { store: Arc::clone(store), tenant: caller.principal.partition(), prior, input }))
}

/// What becomes a stored response with its answer.
struct Keep {
    store: Arc<ResponseStore>,
    tenant: u64,
    prior: Vec<Arc<Item>>,
    input: Vec<Arc<Item>>,
}

impl Keep {
    fn store(self, finished: Finished) {
        let Finished { id, object, output } = finished;
        self.store.insert(self.tenant, StoredResponse { id, object, prior: self.prior, input: self.input, output });
        if self.store.is_on_disk() {
            tokio::task::spawn_blocking(move || self.store.flush());
        }
    }
}

/// Chunks of a response that is stored once it has ended. One whose client leaves never ends.
struct Keeping {
    chunks: ResponseChunks,
    keep: Option<Keep>,
}

impl Chunks for Keeping {
    fn open(&mut self, out: &mut Vec<u8>) {
        self.chunks.open(out);
    }

    fn progress(&mut self, choice: usize, counts: [u32; 3], out: &mut Vec<u8>) {
        self.chunks.progress(choice, counts, out);
    }

    fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        self.chunks.delta(choice, delta, out);
    }

    fn finish(&mut self, choice: usize, done: &Done, out: &mut Vec<u8>) {
        self.chunks.finish(choice, done, out);
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        self.chunks.end(usage, out);
        if let (Some(keep), Some(finished)) = (self.keep.take(), self.chunks.finished()) {
            keep.store(finished);
        }
    }

    fn fail(&mut self, problem: &Problem, out: &mut Vec<u8>) {
        self.chunks.fail(problem, out);
    }
}

async fn collect(running: Running, mut whole: Whole) -> Result<Finished, gateway::Error> {
    let mut running = running.as_whole();
    while let Some((_, event)) = running.next().await {
        match event {
            Event::Delta(delta) => whole.delta(&delta),
            Event::Done(done) => return Ok(whole.end(done.finish, &running.usage())),
            Event::Failed(failure) => return Err(running.error(failure)),
            _ => {}
        }
    }
    Err(Failure::Internal("a generation ended without a word; this is a bug".to_owned()).into())
}
