//! Asks a classifier what it thinks of texts.
//!
//! **Invariant:** nothing passes unseen but what the operator lets pass where the model can't answer: every token of every
//! text is in a window that was looked at. No text is in a log, a metric or an error.
//!
//! # Design
//! A text is tokenised as plain text, so that no client writes a control token, and cut into windows of what the model
//! takes, each inside the tokens that every text of the vocabulary has around it. Neighbours share a quarter, so that a
//! phrase of up to that length is whole in one of them, and the last window is a full one. The highest probability of all
//! counts; the first window that refuses ends it. What texts came to is kept for a while, by digest and apart for each
//! tenant, since a conversation comes again with every turn.
//!
//! The model is asked straight at its engine, without a caller's limits, permit or row: nobody pays for what the operator
//! wants. Its tokens are in its own series. It holds no slot, and who has a place here waits for nothing but an engine
//! that is loaded.

use super::check::{Check, Placed};
use super::windows::{Window, windows};
use crate::chat::Prompt;
use crate::engine::{EmbedRequest, Failure, TokenizeRequest};
use crate::gateway::meter::word;
use crate::gateway::models::Shared;
use crate::gateway::vectors::probabilities;
use crate::gateway::{Error, Target};
use crate::telemetry::Metrics;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use lru::LruCache;
use sha2::{Digest, Sha256};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Semaphore;

/// Windows that are with the engine at once: the next ones are not computed where one of these refuses.
const WINDOWS_AT_ONCE: usize = 64;
/// Texts of one request that are being tokenised at once.
const TEXTS_AT_ONCE: usize = 4;
/// Requests and answers that are looked at at once, by all classifiers; the others wait, as long as their clients do. With
/// `TEXTS_AT_ONCE` of each half the places that an engine has for short work, so that no burst of chats is refused for it.
const JUDGED_AT_ONCE: usize = 32;
/// Longest text that an engine tokenises.
const TEXT_BYTES_MAX: usize = 8 << 20;
/// Texts whose probabilities are kept; those asked for longest ago go first. With heads of two outputs about 1 MiB.
const SEEN_MAX: usize = 8192;
/// A head with more outputs is asked each time.
const SEEN_OUTPUTS_MAX: usize = 64;
/// When to come again after a failure that doesn't say.
const RETRY_AFTER_S: u32 = 2;

/// What classifiers came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum Verdict {
    Passed,
    /// One could not answer, and the operator lets that pass.
    Unseen,
    Denied,
}

pub(in crate::gateway) struct Judge {
    models: Arc<Shared>,
    metrics: Arc<Metrics>,
    places: Semaphore,
    /// What texts came to, by digest.
    seen: Mutex<LruCache<[u8; 32], Seen>>,
}

/// A text that was looked at.
#[derive(Clone)]
struct Seen {
    /// Highest probability of each output.
    most: Arc<[f32]>,
    n_windows: usize,
}

/// Why there is no verdict.
enum Fault {
    /// The settings don't fit the model: for the operator.
    Unfit(String),
    TooLong,
    Failed(Failure),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Fault::Failed(failure)
    }
}

impl Fault {
    /// Counts and logs it; `Ok`: the operator lets pass what was not seen.
    fn excuse(self, check: &Check) -> Result<(), Error> {
        match self {
            Fault::TooLong => Err(too_long()),
            Fault::Unfit(reason) => {
                tracing::error!(guardrail = check.set, "a request is refused: classify: {reason}");
                Err(Error::Unguarded)
            }
            Fault::Failed(failure) => {
                let (model, why) = (check.spec.model.as_str(), word(&failure));
                check.failed();
                if !check.spec.passes_on_error {
                    tracing::warn!(guardrail = check.set, model, why, "refused: the classifier can't answer");
                    return Err(Error::Unseen { retry_after_s: retry_after(&failure) });
                }
                tracing::warn!(guardrail = check.set, model, why, "passed unseen: the classifier can't answer");
                Ok(())
            }
        }
    }
}

/// A text that is not known yet.
struct Unknown {
    digest: [u8; 32],
    tokens: Vec<i32>,
    /// Highest so far; empty before the first window.
    most: Vec<f32>,
    n_windows: usize,
    n_left: usize,
}

/// Tokens around every text.
struct Frame {
    before: Vec<i32>,
    after: Vec<i32>,
}

impl Judge {
    pub(in crate::gateway) fn new(models: Arc<Shared>, metrics: Arc<Metrics>) -> Arc<Self> {
        let seen = Mutex::new(LruCache::new(NonZeroUsize::new(SEEN_MAX).unwrap_or(NonZeroUsize::MIN)));
        Arc::new(Self { models, metrics, places: Semaphore::new(JUDGED_AT_ONCE), seen })
    }

    /// Asks each check in turn. `tenant`: whose texts they are. Cancel-safe: who stops waiting cancels what is computed.
    ///
    /// Errors: `Unguarded` where the settings don't fit the model · `Unseen` where it can't answer now · a refusal of what
    /// is too long to be looked at whole.
    pub(in crate::gateway) async fn judge(
        &self,
        checks: &[Placed],
        tenant: u64,
        texts: &[String],
    ) -> Result<Verdict, Error> {
        let mut verdict = Verdict::Passed;
        for (check, idx) in checks {
            let began = Instant::now();
            let denied = self.is_denied(check, *idx, tenant, texts).await;
            check.took(began.elapsed());
            match denied {
                Ok(true) => {
                    check.denied();
                    return Ok(Verdict::Denied);
                }
                Ok(false) => {}
                Err(fault) => {
                    fault.excuse(check)?;
                    verdict = Verdict::Unseen;
                }
            }
        }
        Ok(verdict)
    }

    /// Refuses, before it is generated, an answer that could not be looked at. Errors: as [`Judge::judge`].
    pub(in crate::gateway) async fn expect(&self, checks: &[Placed]) -> Result<(), Error> {
        for (check, idx) in checks {
            match self.opened(check, *idx).await {
                // It will be let through unseen, or may be seen by then.
                Err(Fault::Failed(_)) if check.spec.passes_on_error => {}
                opened => opened.map(|_| ()).or_else(|fault| fault.excuse(check))?,
            }
        }
        Ok(())
    }

    /// The model, loaded, and which of its outputs are denied.
    async fn opened(&self, check: &Check, idx: usize) -> Result<(Target, Vec<usize>), Fault> {
        let target = self.models.target(idx).await.map_err(|error| match error {
            Error::Engine(failure) => Fault::Failed(failure),
            _ => Fault::Failed(Failure::NotReady { reason: String::new(), retry_after_s: RETRY_AFTER_S }),
        })?;
        let columns = check.spec.columns(&target.description).map_err(Fault::Unfit)?;
        Ok((target, columns))
    }

    async fn is_denied(&self, check: &Check, idx: usize, tenant: u64, texts: &[String]) -> Result<bool, Fault> {
        if texts.is_empty() {
            return Ok(false);
        }
        let (target, columns) = self.opened(check, idx).await?;
        if texts.iter().any(|text| text.len() > TEXT_BYTES_MAX) {
            return Err(Fault::TooLong);
        }
        let above = check.spec.above;
        let refuses = |most: &[f32]| columns.iter().any(|column| most.get(*column).is_none_or(|p| *p >= above));
        let (mut unknown, mut n_known) = (Vec::new(), 0);
        for text in texts {
            let digest = digest(tenant, idx, target.description.files_mark, text);
            match self.known(&digest) {
                Some(seen) if refuses(&seen.most) => return Ok(true),
                Some(seen) => n_known += seen.n_windows,
                None => unknown.push((digest, text.clone())),
            }
        }
        // Those that are known count: what is too long is so whenever it comes.
        let n_left = (check.spec.n_windows_max as usize).checked_sub(n_known).ok_or(Fault::TooLong)?;
        if unknown.is_empty() {
            return Ok(false);
        }
        // It is never closed.
        let _place = self.places.acquire().await.ok();
        let frame = Frame::of(&target).await?;
        let mut unknown = tokenized(&target, unknown).await?;
        let n_max = (target.description.n_embed_max as usize).saturating_sub(frame.before.len() + frame.after.len());
        let places = places(&mut unknown, n_max, n_left)?;
        for batch in places.chunks(WINDOWS_AT_ONCE) {
            let inputs = batch.iter().map(|(i, window)| frame.around(&unknown[*i].tokens[window.clone()])).collect();
            let outputs = self.outputs(&target, inputs).await?;
            for ((i, _), output) in batch.iter().zip(outputs) {
                let text = &mut unknown[*i];
                text.look(&output)?;
                if refuses(&text.most) {
                    return Ok(true);
                }
                if text.n_left == 0 {
                    self.keep(text);
                }
            }
        }
        Ok(false)
    }

    /// Probabilities of each input's labels, all of them numbers.
    async fn outputs(&self, target: &Target, inputs: Vec<Prompt>) -> Result<Vec<Vec<f32>>, Fault> {
        let n_inputs = inputs.len();
        let vectors = target.engine.embed(EmbedRequest { inputs, truncate: false }).await?.finish().await?;
        let n_tokens = vectors.n_tokens.iter().fold(0u32, |sum, n| sum.saturating_add(*n));
        self.metrics.model(target.id()).prompt(n_tokens, 0);
        let outputs: Vec<Vec<f32>> =
            vectors.vectors.iter().map(|output| probabilities(&target.description, output)).collect();
        let is_whole = outputs.len() == n_inputs && outputs.iter().flatten().all(|p| p.is_finite());
        match is_whole {
            true => Ok(outputs),
            false => Err(Fault::Failed(Failure::Internal("a classifier's outputs are no numbers".to_owned()))),
        }
    }

    fn known(&self, digest: &[u8; 32]) -> Option<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    fn keep(&self, text: &Unknown) {
        if text.most.len() <= SEEN_OUTPUTS_MAX {
            let seen = Seen { most: Arc::from(text.most.as_slice()), n_windows: text.n_windows };
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).put(text.digest, seen);
        }
    }
}

impl Unknown {
    /// Takes a window's probabilities.
    fn look(&mut self, output: &[f32]) -> Result<(), Fault> {
        if self.most.is_empty() {
            self.most = vec![0.0; output.len()];
        }
        if output.is_empty() || output.len() != self.most.len() {
            return Err(Fault::Failed(Failure::Internal("a classifier's outputs are not alike".to_owned())));
        }
        self.most.iter_mut().zip(output).for_each(|(most, p)| *most = most.max(*p));
        self.n_left -= 1;
        Ok(())
    }
}

impl Frame {
    /// What the vocabulary puts around a text, by an example.
    async fn of(target: &Target) -> Result<Self, Failure> {
        let example = || "a".to_owned();
        let (bare, whole) = tokio::try_join!(tokens(target, example(), false), tokens(target, example(), true))?;
        let at = whole.windows(bare.len().max(1)).position(|window| window == bare);
        let Some(at) = at else { return Ok(Self { before: whole, after: Vec::new() }) };
        Ok(Self { before: whole[..at].to_vec(), after: whole[at + bare.len()..].to_vec() })
    }

    fn around(&self, tokens: &[i32]) -> Prompt {
        Prompt::Tokens([&self.before, tokens, &self.after].concat())
    }
}

async fn tokens(target: &Target, text: String, add_special: bool) -> Result<Vec<i32>, Failure> {
    let request = TokenizeRequest {
        prompt: Prompt::Text(text),
        add_special,
        parse_special: false,
        with_pieces: false,
        partition: 0,
    };
    Ok(target.engine.tokenize(request).await?.tokens)
}

async fn tokenized(target: &Target, texts: Vec<([u8; 32], String)>) -> Result<Vec<Unknown>, Failure> {
    let one = |(digest, text)| async move {
        let tokens = tokens(target, text, false).await?;
        Ok(Unknown { digest, tokens, most: Vec::new(), n_windows: 0, n_left: 0 })
    };
    stream::iter(texts.into_iter().map(one)).buffered(TEXTS_AT_ONCE).try_collect().await
}

/// All windows of all texts, by the texts' indexes; at most `most`.
fn places(texts: &mut [Unknown], n_max: usize, most: usize) -> Result<Vec<(usize, Window)>, Fault> {
    let mut places = Vec::new();
    for (i, text) in texts.iter_mut().enumerate() {
        let Some(cut) = windows(text.tokens.len(), n_max, most - places.len()) else {
            return Err(Fault::TooLong);
        };
        (text.n_windows, text.n_left) = (cut.len(), cut.len());
        places.extend(cut.into_iter().map(|window| (i, window)));
    }
    Ok(places)
}

fn digest(tenant: u64, idx: usize, files_mark: u64, text: &str) -> [u8; 32] {
    let head = [tenant, idx as u64, files_mark];
    let digest = head.iter().fold(Sha256::new(), |digest, n| digest.chain_update(n.to_le_bytes()));
    digest.chain_update(text).finalize().into()
}

fn retry_after(failure: &Failure) -> u32 {
    match failure {
        Failure::Overloaded { retry_after_s, .. }
        | Failure::Shed { retry_after_s }
        | Failure::NotReady { retry_after_s, .. } => (*retry_after_s).max(1),
        _ => RETRY_AFTER_S,
    }
}

fn too_long() -> Error {
    let message = "The request has more text than this server's operator can have looked at; please send less at once.";
    Failure::invalid("prompt", "string_above_max_length", message).into()
}
