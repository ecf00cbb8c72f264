//! Vectors and scores: checks, the engine's answer, and what it cost.

use super::books::Entry;
use super::guardrails::{Border, texts_of};
use super::limits::{Permit, Reservation, Spend};
use super::meter::word;
use super::trace::{Generated, Trace, UsageSource};
use super::{Caller, Error, Gateway, Price, Target};
use crate::chat::check::Refusal;
use crate::chat::{Class, EmbedAsk, RerankAsk, ScoreAsk, Usage};
use crate::dialect::openai;
use crate::engine::{Description, EmbedRequest, Failure, Pooling, RerankRequest, Vectorizing, Vectors};
use crate::telemetry::metrics::ModelSeries;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::sync::Arc;
use std::time::Instant;

/// Vectors in the order of their inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// The served id, whatever name was asked for.
    pub model: String,
    pub vectors: Vec<Vec<f32>>,
    /// Where each token has a vector of so many numbers: those of an input stand one behind the other, not scaled.
    pub n_per_token: Option<usize>,
    /// Tokens of all inputs.
    pub prompt_tokens: u64,
}

/// Scores in the order of the documents, higher is better.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub model: String,
    pub scores: Vec<f32>,
    pub prompt_tokens: u64,
}

/// Outputs of a classification head for each input: their softmax is the probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct Classified {
    pub model: String,
    pub outputs: Vec<Vec<f32>>,
    /// Names of the outputs; empty where the model has none.
    pub labels: Vec<String>,
    pub prompt_tokens: u64,
}

/// Queries of one score request that are with the engine at once.
const SCORES_AT_ONCE: usize = 8;
/// Special tokens of a pair, at most.
const PAIR_TOKENS: usize = 8;

impl Gateway {
    /// One vector for each input, cut to `dimensions` and scaled.
    ///
    /// Errors: `unsupported_operation` at `model` for one that makes none, `dimensions` out of range, and the engine's.
    pub async fn embed(&self, caller: &Caller, ask: EmbedAsk) -> Result<Embedded, Error> {
        let (target, permit) = self.let_in(caller, ask.model.as_deref(), ask.end_user.as_deref()).await?;
        let description = &target.description;
        require_vectors(description, ask.takes_tokens)?;
        check_dimensions(ask.dimensions, description)?;
        let border = self.live.load().border(caller, &[], &target.config.guardrails)?;
        let mut inputs = ask.inputs;
        inputs.iter_mut().try_for_each(|input| border.enter_prompt(input))?;
        self.judge_texts(caller, &border, None, || texts_of(&inputs)).await?;
        let n_per_token = (description.pooling == Some(Pooling::None)).then_some(description.n_embd_out as usize);
        let mut meter = VectorMeter::new(self, caller, &target, inputs.len(), permit);
        let request = EmbedRequest { inputs, truncate: ask.truncate };
        let vectors = meter.make(self, &target, target.engine.embed(request).await).await?;
        let prompt_tokens = meter.prompt_tokens;
        // Millions of numbers take a while, and others wait for this thread.
        let scale = move || {
            let mut vectors = vectors.vectors;
            if n_per_token.is_some() {
                return vectors;
            }
            for vector in &mut vectors {
                vector.truncate(ask.dimensions.map_or(usize::MAX, |n| n as usize));
                ask.norm.apply(vector);
            }
            vectors
        };
        let vectors = tokio::task::spawn_blocking(scale).await;
        let vectors = vectors.map_err(|_| Failure::Internal("scaling vectors panicked; this is a bug".into()))?;
        Ok(Embedded { model: target.id().to_owned(), vectors, n_per_token, prompt_tokens })
    }

    /// The vectors as the model makes them, of a model that is held already.
    pub async fn vectors(&self, caller: &Caller, target: &Target, mut request: EmbedRequest) -> Result<Vectors, Error> {
        require_vectors(&target.description, false)?;
        let permit = self.admit(caller, Some(target.idx()), target.id(), None).await?;
        let border = self.live.load().border(caller, &[], &target.config.guardrails)?;
        request.inputs.iter_mut().try_for_each(|input| border.enter_prompt(input))?;
        self.judge_texts(caller, &border, None, || texts_of(&request.inputs)).await?;
        let mut meter = VectorMeter::new(self, caller, target, request.inputs.len(), permit);
        meter.make(self, target, target.engine.embed(request).await).await
    }

    /// A score for each document, not sorted.
    pub async fn rerank(&self, caller: &Caller, mut ask: RerankAsk) -> Result<Scored, Error> {
        let (target, permit) = self.let_in(caller, ask.model.as_deref(), ask.end_user.as_deref()).await?;
        let border = self.live.load().border(caller, &[], &target.config.guardrails)?;
        std::iter::once(&mut ask.query).chain(&mut ask.documents).try_for_each(|text| border.enter_text(text))?;
        let texts = || std::iter::once(&ask.query).chain(&ask.documents).cloned().collect();
        self.judge_texts(caller, &border, None, texts).await?;
        let description = &target.description;
        require_head(description)?;
        let mut meter = VectorMeter::new(self, caller, &target, ask.documents.len(), permit);
        let request = RerankRequest { query: ask.query, documents: ask.documents, n_document_max: ask.n_document_max };
        let vectors = meter.make(self, &target, target.engine.rerank(request).await).await?;
        let scores = firsts(vectors);
        Ok(Scored { model: target.id().to_owned(), scores, prompt_tokens: meter.prompt_tokens })
    }

    /// A score for each pair.
    pub async fn score(&self, caller: &Caller, mut ask: ScoreAsk) -> Result<Scored, Error> {
        let (target, permit) = self.let_in(caller, ask.model.as_deref(), ask.end_user.as_deref()).await?;
        let border = self.live.load().border(caller, &[], &target.config.guardrails)?;
        for (query, documents) in &mut ask.groups {
            std::iter::once(query).chain(documents).try_for_each(|text| border.enter_text(text))?;
        }
        let texts = || ask.groups.iter().flat_map(|(query, all)| std::iter::once(query).chain(all)).cloned().collect();
        self.judge_texts(caller, &border, None, texts).await?;
        let description = &target.description;
        require_head(description)?;
        let n_pairs = ask.groups.iter().map(|(_, documents)| documents.len()).sum();
        let mut meter = VectorMeter::new(self, caller, &target, n_pairs, permit);
        // The groups are counted one by one while others are being computed, so what is reserved is what they can be at
        // most: each byte a token, and a few between the two texts.
        let n_bytes_max = |(query, documents): &(String, Vec<String>)| {
            documents.iter().map(|document| (query.len() + document.len() + PAIR_TOKENS) as u64).sum::<u64>()
        };
        meter.reserve(self, &target, ask.groups.iter().map(n_bytes_max).sum())?;
        let requests = ask.groups.into_iter().map(|(query, documents)| async {
            let request = RerankRequest { query, documents, n_document_max: None };
            target.engine.rerank(request).await?.finish().await
        });
        let groups: Result<Vec<Vectors>, Failure> = stream::iter(requests).buffered(SCORES_AT_ONCE).try_collect().await;
        let all = groups.map(|groups| {
            groups.into_iter().fold(Vectors::default(), |mut all, group| {
                all.vectors.extend(group.vectors);
                all.n_tokens.extend(group.n_tokens);
                all
            })
        });
        let scores = firsts(meter.end(all)?);
        Ok(Scored { model: target.id().to_owned(), scores, prompt_tokens: meter.prompt_tokens })
    }

    /// The classification head's outputs for each input.
    pub async fn classify(&self, caller: &Caller, mut ask: EmbedAsk) -> Result<Classified, Error> {
        let (target, permit) = self.let_in(caller, ask.model.as_deref(), ask.end_user.as_deref()).await?;
        let border = self.live.load().border(caller, &[], &target.config.guardrails)?;
        ask.inputs.iter_mut().try_for_each(|input| border.enter_prompt(input))?;
        // A classifier that is asked itself is not asked before whether it may be.
        self.judge_texts(caller, &border, Some(target.idx()), || texts_of(&ask.inputs)).await?;
        let description = &target.description;
        require_head(description)?;
        let mut meter = VectorMeter::new(self, caller, &target, ask.inputs.len(), permit);
        let request = EmbedRequest { inputs: ask.inputs, truncate: ask.truncate };
        let outputs = meter.make(self, &target, target.engine.embed(request).await).await?.vectors;
        Ok(Classified {
            model: target.id().to_owned(),
            outputs: outputs.into_iter().map(|output| logits(description, output)).collect(),
            labels: description.labels.clone(),
            prompt_tokens: meter.prompt_tokens,
        })
    }
}

impl Gateway {
    /// Has the classifiers of a border look at texts that have entered; `but`: not this model.
    async fn judge_texts(
        &self,
        caller: &Caller,
        border: &Border,
        but: Option<usize>,
        texts: impl FnOnce() -> Vec<String>,
    ) -> Result<(), Error> {
        border.judge(&self.judge, (caller.principal.partition(), but), texts).await
    }
}

/// Whether the graph ends with a softmax of its own. Source: `llm_graph_context::build_pooling`, src/llama-graph.cpp.
fn is_softmaxed(description: &Description) -> bool {
    ["qwen3", "qwen3vl"].contains(&description.architecture.as_str())
}

fn logits(description: &Description, output: Vec<f32>) -> Vec<f32> {
    if is_softmaxed(description) { output.into_iter().map(f32::ln).collect() } else { output }
}

/// Of the labels of a classification head.
pub(super) fn probabilities(description: &Description, output: &[f32]) -> Vec<f32> {
    if is_softmaxed(description) { output.to_vec() } else { openai::probabilities(output) }
}

fn firsts(vectors: Vectors) -> Vec<f32> {
    vectors.vectors.iter().map(|vector| vector.first().copied().unwrap_or_default()).collect()
}

fn require_head(description: &Description) -> Result<(), Error> {
    match description.pooling {
        Some(Pooling::Rank) => Ok(()),
        _ => Err(unsupported("This model can't score texts: it has no classification head in use (--rerank).")),
    }
}

/// `takes_tokens`: those of tokens will do.
fn require_vectors(description: &Description, takes_tokens: bool) -> Result<(), Error> {
    match description.pooling {
        None => {
            Err(unsupported("This model can't make embeddings as it is served; a chat model can with --embeddings on."))
        }
        Some(Pooling::Rank) => Err(unsupported("This model scores texts and makes no embeddings.")),
        Some(Pooling::None) if !takes_tokens => Err(unsupported(
            "This model is served without pooling (--pooling none): only POST /embedding gives vectors.",
        )),
        Some(_) => Ok(()),
    }
}

fn check_dimensions(dimensions: Option<u32>, description: &Description) -> Result<(), Error> {
    let n_max = description.n_embd_out;
    match dimensions {
        Some(n) if n > n_max => {
            let message = format!("dimensions must be at most {n_max} with this model, but it is {n}.");
            Err(Error::Refused(Refusal::new("dimensions", "integer_above_max_value", message)))
        }
        _ => Ok(()),
    }
}

fn unsupported(message: &str) -> Error {
    Failure::invalid("model", "unsupported_operation", message).into()
}

/// Counts a request's tokens and logs its end, however it ends.
struct VectorMeter {
    series: ModelSeries,
    trace: Trace,
    n_inputs: usize,
    started: Instant,
    prompt_tokens: u64,
    outcome: &'static str,
    /// What the request holds of its limits, and what its tokens cost.
    permit: Permit,
    reserved: Option<Reservation>,
    price: Price,
    entry: Option<Arc<Entry>>,
}

impl VectorMeter {
    fn new(gateway: &Gateway, caller: &Caller, target: &Target, n_inputs: usize, permit: Permit) -> Self {
        // Vectors wait for no slot.
        permit.start();
        Self {
            permit,
            reserved: None,
            price: target.config.price,
            series: gateway.metrics.model(target.id()),
            trace: caller.trace.clone(),
            n_inputs,
            started: Instant::now(),
            prompt_tokens: 0,
            outcome: "cancelled",
            entry: caller.entry.clone(),
        }
    }

    /// Reserves what the engine counted, then waits for the vectors. A refusal drops, and so cancels, them.
    async fn make(
        &mut self,
        gateway: &Gateway,
        target: &Target,
        begun: Result<Vectorizing, Failure>,
    ) -> Result<Vectors, Error> {
        let begun = match begun {
            Ok(begun) => begun,
            Err(failure) => {
                gateway.count_shed(&failure, Class::Interactive);
                return Ok(self.end(Err(failure))?);
            }
        };
        self.reserve(gateway, target, begun.n_tokens.into())?;
        Ok(self.end(begun.finish().await)?)
    }

    fn reserve(&mut self, gateway: &Gateway, target: &Target, n_tokens: u64) -> Result<(), Error> {
        let most = Spend { tokens: n_tokens, nusd: self.price.cost(n_tokens, 0, 0) };
        let reserved = gateway.reserve(&self.permit, target.id(), most).inspect_err(|_| self.outcome = "limited")?;
        self.reserved = Some(reserved);
        Ok(())
    }

    fn end(&mut self, result: Result<Vectors, Failure>) -> Result<Vectors, Failure> {
        match &result {
            Ok(vectors) => {
                self.prompt_tokens = vectors.n_tokens.iter().map(|n| u64::from(*n)).sum();
                self.outcome = "done";
                if let Some(entry) = &self.entry {
                    let prompt_tokens = u32::try_from(self.prompt_tokens).unwrap_or(u32::MAX);
                    entry.count(&Usage { prompt_tokens, ..Usage::default() }, UsageSource::Engine);
                }
            }
            Err(failure) => {
                self.outcome = word(failure);
                if let (Some(entry), Failure::Crashed { .. }) = (&self.entry, failure) {
                    entry.end("engine_crash");
                }
            }
        }
        result
    }
}

impl Drop for VectorMeter {
    fn drop(&mut self) {
        let spend = Spend { tokens: self.prompt_tokens, nusd: self.price.cost(self.prompt_tokens, 0, 0) };
        // A client that left has made its request, though nobody knows of how many tokens; one that failed has not.
        if let Some(reserved) = self.reserved.take().filter(|_| matches!(self.outcome, "done" | "cancelled")) {
            reserved.settle(spend);
        }
        let prompt_tokens = u32::try_from(self.prompt_tokens).unwrap_or(u32::MAX);
        self.series.prompt(prompt_tokens, 0);
        self.trace.generated(Generated {
            outcome: self.outcome,
            finishes: Vec::new(),
            n_choices: self.n_inputs,
            usage: Usage { prompt_tokens, ..Usage::default() },
            source: UsageSource::Engine,
            cost_nusd: if self.outcome == "done" { spend.nusd } else { 0 },
            began: self.started,
            first_token: None,
            ended: Instant::now(),
            timings: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/v1/classify` and a classifier at the border say the same, whether or not the graph ends with a softmax.
    #[test]
    fn probabilities_are_made_once() {
        let of = |architecture: &str| Description { architecture: architecture.to_owned(), ..Description::default() };
        for (description, output) in [(of("bert"), vec![0.5f32, -1.0, 2.0]), (of("qwen3"), vec![0.25, 0.75, 0.0])] {
            let expected = probabilities(&description, &output);
            let shown = openai::probabilities(&logits(&description, output));
            let is_close = shown.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(is_close && shown.len() == 3, "{shown:?} {expected:?}");
            assert!((shown.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
        assert_eq!(probabilities(&of("qwen3"), &[0.25, 0.75]), [0.25, 0.75]);
    }
}
