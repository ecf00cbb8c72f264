//! Handlers of llama-server's own completions.

use super::App;
use super::body::JsonBody;
use super::edge::{list_ignored, until_cut};
use super::error::{ApiError, Asked};
use super::openai::{json, refuse_if_strict, refused_prompt};
use super::sse::{self, Stream};
use crate::chat::Prompt;
use crate::dialect::openai::{self, Native, NativeChunks};
use crate::dialect::{Read, Watched};
use crate::engine::TokenizeRequest;
use crate::gateway::Caller;
use axum::Extension;
use axum::extract::State;
use axum::response::Response;

/// Text, in llama-server's shape.
pub(super) async fn completion(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    answer(&app, &caller, body.read(openai::native_request).await?).await
}

/// The text for a gap.
pub(super) async fn infill(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    answer(&app, &caller, body.read(openai::infill_request).await?).await
}

async fn answer(app: &App, caller: &Caller, read: Read<Native>) -> Result<Response, ApiError> {
    refuse_if_strict(app, &read.ignored)?;
    let Native { mut request, biased_texts, mut style, constraint } = read.request;
    let refused = refused_prompt(constraint);
    bias(app, caller, &mut request, biased_texts).await?;
    let (name, said) = (request.model.clone(), request.sampling.clone());
    let (stream, wanted) = (request.stream, style.wanted);
    let running = until_cut(app, app.gateway.complete(caller, request)).await?.map_err(&refused)?;
    style.sampling = app.gateway.shown_sampling(caller, name.as_deref(), said);
    style.n_ctx = app.gateway.shown_context(caller, name.as_deref());
    let model = running.model().to_owned();
    let mut response = if stream {
        let n_choices = running.n_choices();
        let chunks = Watched::new(NativeChunks::new(&model, n_choices, style), n_choices, wanted);
        sse::response(Stream { running, chunks, asked: Asked::Prompt }, app)
    } else {
        let (answers, _) = until_cut(app, running.collect()).await?.map_err(&refused)?;
        json(openai::native_response(&model, &answers, &style))
    };
    list_ignored(response.headers_mut(), read.ignored.header());
    Ok(response)
}

/// Biases of texts become those of their tokens.
async fn bias(
    app: &App,
    caller: &Caller,
    request: &mut crate::chat::CompletionRequest,
    texts: Vec<(String, f32)>,
) -> Result<(), ApiError> {
    for (text, bias) in texts {
        let prompt = Prompt::Text(text);
        let ask = TokenizeRequest { prompt, add_special: false, parse_special: true, with_pieces: false, partition: 0 };
        let read = until_cut(app, app.gateway.tokenize(caller, request.model.as_deref(), ask)).await?;
        let (read, _) =
            read.map_err(|error| ApiError::of(error, Asked::Nothing).renamed(|_| "logit_bias".to_owned()))?;
        let biases = request.sampling.logit_bias.get_or_insert_default();
        biases.extend(read.tokens.into_iter().map(|token| (token, bias)));
    }
    Ok(crate::chat::check::sampling(&request.sampling).map_err(crate::dialect::Fault::from)?)
}
