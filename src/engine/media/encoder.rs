//! The thread that turns chunks into embeddings, between the preparers and the workers.

use super::{Cache, Encoded, EncodedPiece, Key, Pending};
use crate::engine::backend::{Model, Piece};
use crate::engine::error::Failure;
use crate::engine::event::Event;
use crate::engine::lane::Lane;
use crate::engine::run::Run;
use crate::engine::service::{Cancels, Registry};
use crate::engine::transport::Sink;
use crossbeam_channel::Receiver;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Runs whose chunks are being made ready; their preprocessed images are in memory meanwhile.
pub(in crate::engine) const JOBS_MAX: usize = 4;

/// How often a full cache is looked at again.
const FULL_WAIT: Duration = Duration::from_millis(20);

/// A run that was accepted, and what its spans still lack.
pub(in crate::engine) struct Job<M: Model> {
    pub run: Box<Run<M::Sampler>>,
    pub pending: Vec<Pending<M::Chunk>>,
}

pub(in crate::engine) struct Encoder<M: Model> {
    pub model: Arc<M>,
    pub cache: Arc<Cache>,
    pub lanes: Arc<Vec<Lane<M::Sampler>>>,
    pub registry: Arc<Registry>,
    pub sink: Arc<dyn Sink>,
    pub cancels: Arc<Cancels>,
}

impl<M: Model> Encoder<M> {
    /// Until every preparer is gone.
    pub fn run(&self, jobs: &Receiver<Job<M>>) {
        while let Ok(mut job) = jobs.recv() {
            let id = job.run.id;
            let outcome = catch_unwind(AssertUnwindSafe(|| self.encode(&mut job)));
            let outcome = outcome.unwrap_or_else(|_| Err(Failure::Internal("encoding panicked; this is a bug".into())));
            let outcome = outcome.and_then(|()| super::super::prepare::hand_over(&self.lanes, job.run));
            if let Err(failure) = outcome {
                self.registry.remove(id);
                self.sink.emit(vec![(id, Event::Failed(failure))]);
            }
        }
    }

    fn encode(&self, job: &mut Job<M>) -> Result<(), Failure> {
        let mut spans = job.run.media.to_vec();
        for pending in job.pending.drain(..) {
            let encoded = match self.cache.get(&pending.key) {
                // Another request of the same partition had the same meanwhile.
                Some(known) => known,
                None => self.encode_pieces(&job.run, pending.key, pending.pieces)?,
            };
            let chunks = encoded.pieces.iter().filter_map(|piece| match piece {
                EncodedPiece::Chunk(rows) => Some(rows),
                EncodedPiece::Text(_) => None,
            });
            for (span, rows) in spans[pending.first_span..].iter_mut().zip(chunks) {
                span.rows = Some(Arc::clone(rows));
            }
        }
        job.run.media = spans.into();
        Ok(())
    }

    fn encode_pieces(
        &self,
        run: &Run<M::Sampler>,
        key: Key,
        pieces: Vec<Piece<M::Chunk>>,
    ) -> Result<Arc<Encoded>, Failure> {
        let mut encoded = Vec::with_capacity(pieces.len());
        for piece in pieces {
            encoded.push(match piece {
                Piece::Text(tokens) => EncodedPiece::Text(tokens),
                Piece::Chunk { chunk, shape } => {
                    self.wait_for_room(run)?;
                    let rows = self.model.encode_media(&chunk).map_err(|reason| {
                        tracing::error!(%reason, "a projector failed");
                        Failure::Internal("the image or sound could not be encoded".into())
                    })?;
                    EncodedPiece::Chunk(self.cache.rows(shape, rows))
                }
            });
        }
        let encoded = Arc::new(Encoded { pieces: encoded });
        self.cache.put(key, &encoded);
        Ok(encoded)
    }

    /// Waits while runs hold all the embeddings that memory is meant for; they end by themselves.
    fn wait_for_room(&self, run: &Run<M::Sampler>) -> Result<(), Failure> {
        loop {
            if self.cancels.stopping.load(Ordering::Relaxed) {
                return Err(Failure::ShuttingDown);
            }
            if run.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            // A run that alone holds more than the bound must get on too.
            if !self.cache.is_full() || self.lanes.iter().all(|lane| lane.n_runs() == 0) {
                return Ok(());
            }
            std::thread::sleep(FULL_WAIT);
        }
    }
}
