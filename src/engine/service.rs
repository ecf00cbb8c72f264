//! The engine's side of the door: loads the model, prepares requests, runs the workers.
//!
//! Threads: one loader (which becomes nothing once loaded), `N_PREPARERS` that render, tokenise and check, one per worker,
//! one for output. **Invariant:** every submitted command is answered by exactly one ending event.

use super::backend::llama::LlamaModel;
use super::backend::scripted::ScriptedModel;
use super::backend::{Context, Interrupt, Model};
use super::config::{EngineConfig, ModelSource};
use super::constraint::Constraints;
use super::constraint::masks::Masks;
use super::cost::StepCost;
use super::drafter::Corpus;
use super::embed;
use super::error::Failure;
use super::event::{Description, Event, Pooling, SlotStats, Stats};
use super::lane::Lane;
use super::media::Cache;
use super::media::encoder::{self, JOBS_MAX};
use super::output;
use super::pace::Pace;
use super::prefix::{self, Folder, Named, Saved};
use super::prepare::{Embedder, Preparer, Sight, Work};
use super::pressure::Spare;
use super::request::{Command, RequestId};
use super::transport::{Notice, Sink};
use super::worker::{self, Parts, Worker};
use crate::model::lock::Pinned;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use rustc_hash::FxHashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Whether a request still has somebody who wants it.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub cancelled: AtomicBool,
    /// It is to go unless it has its slot.
    pub shed: AtomicBool,
}

/// Requests the service works on.
#[derive(Debug, Default)]
pub(super) struct Registry {
    live: Mutex<FxHashMap<RequestId, Arc<Live>>>,
}

impl Registry {
    fn insert(&self, id: RequestId) -> Arc<Live> {
        let live = Arc::new(Live::default());
        self.lock().insert(id, Arc::clone(&live));
        live
    }

    pub(super) fn remove(&self, id: RequestId) {
        self.lock().remove(&id);
    }

    fn get(&self, id: RequestId) -> Option<Arc<Live>> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<RequestId, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a worker hears of cancels, also in the middle of a decode.
#[derive(Debug, Default)]
pub(super) struct Cancels {
    /// Cancels so far; a worker sweeps when it has changed.
    count: AtomicU64,
    pub stopping: AtomicBool,
    /// The requests of the decode that runs now.
    batch: Mutex<Vec<Arc<Live>>>,
    /// Cancels that were looked at.
    seen: AtomicU64,
    /// Goes up while the worker gets on: with each of its rounds, and each node of a graph.
    n_steps: AtomicU64,
    is_busy: AtomicBool,
    pub spare: Spare,
}

impl Cancels {
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// `swept`: the count at the worker's last sweep. A cancel since then is news, also if it came before this call.
    pub(super) fn begin_batch<'a>(&self, lives: impl Iterator<Item = &'a Arc<Live>>, swept: u64) {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        batch.clear();
        batch.extend(lives.cloned());
        self.seen.store(swept, Ordering::Relaxed);
    }

    fn add(&self) {
        self.count.fetch_add(1, Ordering::Release);
    }

    /// The worker has something to do and does it.
    pub(super) fn step(&self) {
        self.is_busy.store(true, Ordering::Relaxed);
        // Nobody else adds while this does: there is one worker, and the threads of its decode take turns at this.
        self.n_steps.store(self.n_steps.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The worker waits for something to do.
    pub(super) fn rest(&self) {
        self.is_busy.store(false, Ordering::Relaxed);
    }

    /// Nobody wants any row of the running decode: asked once per graph node, so the usual answer is a few atomic loads.
    fn should_abort(&self) -> bool {
        self.step();
        if self.stopping.load(Ordering::Relaxed) {
            return true;
        }
        let count = self.count();
        if count == self.seen.load(Ordering::Relaxed) {
            return false;
        }
        self.seen.store(count, Ordering::Relaxed);
        let batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        !batch.is_empty() && batch.iter().all(|live| live.cancelled.load(Ordering::Relaxed))
    }
}

/// What a worker tells about itself, written between steps.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkerStats {
    pub slots: Vec<SlotStats>,
    pub n_waiting: u32,
    pub n_waiting_tokens: u64,
    pub kv_cells_used: u32,
    pub kv_cells_total: u32,
    pub prompt_tokens_computed: u64,
    pub prompt_tokens_cached: u64,
    pub tokens_generated: u64,
    pub n_decode_calls: u64,
    pub n_decode_rows: u64,
    pub n_pad_rows: u64,
    pub n_parked: u64,
    pub prompt_tokens_loaded: u64,
    pub n_awaited: u64,
    pub saved_bytes: u64,
    pub named_bytes: u64,
    pub n_drafted: u64,
    pub n_drafted_right: u64,
}

/// A running engine. Dropping it without `stop` leaves its threads to end by themselves.
pub struct Service {
    registry: Arc<Registry>,
    sink: Arc<dyn Sink>,
    works: Mutex<Option<Sender<Work>>>,
    cancels: Arc<Mutex<Vec<Arc<Cancels>>>>,
    stats: Arc<Mutex<Vec<Arc<Mutex<WorkerStats>>>>>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    loader: Mutex<Option<JoinHandle<()>>>,
}

/// Threads that render, tokenise and check.
const N_PREPARERS: usize = 2;

/// Their stacks. llama.cpp's tokenizers recurse once per character of an unbroken word in some regexes; the memory is
/// only touched when that happens.
pub(super) const PREPARER_STACK_BYTES: usize = 256 << 20;

impl Service {
    /// Returns at once; the sink is told of the load's progress and end.
    pub(super) fn start(config: EngineConfig, sink: Arc<dyn Sink>) -> Service {
        // Every request in flight has at most one piece of work here, so the front's places bound it.
        let (works, work_queue) = crossbeam_channel::bounded(config.n_places() as usize + 1024);
        let service = Service {
            registry: Arc::default(),
            sink: Arc::clone(&sink),
            works: Mutex::new(Some(works)),
            cancels: Arc::default(),
            stats: Arc::default(),
            threads: Arc::default(),
            loader: Mutex::new(None),
        };
        let loading = Loading {
            config,
            sink,
            registry: Arc::clone(&service.registry),
            works: work_queue,
            cancels: Arc::clone(&service.cancels),
            stats: Arc::clone(&service.stats),
            threads: Arc::clone(&service.threads),
        };
        let sink = Arc::clone(&service.sink);
        let loader = std::thread::Builder::new().name("load".into()).spawn(move || {
            let sink = Arc::clone(&loading.sink);
            let result = catch_unwind(AssertUnwindSafe(|| loading.load()));
            let result = result.unwrap_or_else(|_| Err("loading panicked; this is a bug".into()));
            if let Err(reason) = result {
                sink.notice(Notice::LoadFailed { reason });
            }
        });
        match loader {
            Ok(loader) => *service.loader.lock().unwrap_or_else(PoisonError::into_inner) = Some(loader),
            Err(error) => sink.notice(Notice::LoadFailed { reason: format!("no thread can be started: {error}") }),
        }
        service
    }

    /// Takes a command. After an error the request has not been and won't be answered.
    pub(super) fn submit(&self, id: RequestId, command: Command) -> Result<(), Failure> {
        match command {
            Command::Spare(is_on) => {
                let all = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
                all.iter().for_each(|one| one.spare.set(is_on));
                Ok(())
            }
            ends @ (Command::Cancel | Command::Shed) => {
                if let Some(live) = self.registry.get(id) {
                    let flag = if ends == Command::Shed { &live.shed } else { &live.cancelled };
                    flag.store(true, Ordering::Relaxed);
                    for cancels in self.cancels.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                        cancels.add();
                    }
                }
                Ok(())
            }
            Command::Stats => {
                self.emit(vec![(id, Event::Stats(self.stats()))]);
                Ok(())
            }
            command => {
                let live = self.registry.insert(id);
                let works = self.works.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let sent = works.ok_or(Failure::ShuttingDown).and_then(|works| {
                    works.try_send(Work { id, live, command }).map_err(|error| match error {
                        TrySendError::Full(_) => Failure::Internal("the engine's work queue is full".into()),
                        TrySendError::Disconnected(_) => Failure::ShuttingDown,
                    })
                });
                if sent.is_err() {
                    self.registry.remove(id);
                }
                sent
            }
        }
    }

    /// Ends every request and joins the threads: at most one step of a decode.
    pub(super) fn stop(&self) {
        self.works.lock().unwrap_or_else(PoisonError::into_inner).take();
        for cancels in self.cancels.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            cancels.stopping.store(true, Ordering::Relaxed);
        }
        if let Some(loader) = self.loader.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A load can't be interrupted; whoever is in a hurry ends the process.
            let _ = loader.join();
        }
        for cancels in self.cancels.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            cancels.stopping.store(true, Ordering::Relaxed);
        }
        let threads: Vec<_> = self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        for thread in threads {
            let _ = thread.join(); // A panic was reported when it happened.
        }
    }

    /// How far the workers are, and whether any of them has something to do.
    pub(super) fn pulse(&self) -> (u64, bool) {
        let all = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        let n_steps = all.iter().map(|one| one.n_steps.load(Ordering::Relaxed)).fold(0, u64::wrapping_add);
        (n_steps, all.iter().any(|one| one.is_busy.load(Ordering::Relaxed)))
    }

    pub(super) fn emit(&self, events: Vec<(RequestId, Event)>) {
        self.sink.emit(events);
    }

    fn stats(&self) -> Stats {
        let mut total = Stats::default();
        for worker in self.stats.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
            let base = total.slots.len() as u32;
            total.slots.extend(worker.slots.iter().cloned().map(|slot| SlotStats { slot: base + slot.slot, ..slot }));
            total.n_queued += worker.n_waiting;
            total.n_queued_tokens += worker.n_waiting_tokens;
            total.kv_cells_used += worker.kv_cells_used;
            total.kv_cells_total += worker.kv_cells_total;
            total.prompt_tokens_computed += worker.prompt_tokens_computed;
            total.prompt_tokens_cached += worker.prompt_tokens_cached;
            total.tokens_generated += worker.tokens_generated;
            total.n_decode_calls += worker.n_decode_calls;
            total.n_decode_rows += worker.n_decode_rows;
            total.n_pad_rows += worker.n_pad_rows;
            total.n_parked += worker.n_parked;
            total.prompt_tokens_loaded += worker.prompt_tokens_loaded;
            total.n_awaited += worker.n_awaited;
            total.saved_bytes += worker.saved_bytes + worker.named_bytes;
            total.n_drafted += worker.n_drafted;
            total.n_drafted_right += worker.n_drafted_right;
        }
        total
    }
}

/// What the loader needs; ends when everything runs.
struct Loading {
    config: EngineConfig,
    sink: Arc<dyn Sink>,
    registry: Arc<Registry>,
    works: Receiver<Work>,
    cancels: Arc<Mutex<Vec<Arc<Cancels>>>>,
    stats: Arc<Mutex<Vec<Arc<Mutex<WorkerStats>>>>>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Loading {
    fn load(self) -> Result<(), String> {
        let progress = |progress: f32| self.sink.notice(Notice::Loading { progress });
        // Before they are read: of files that change meanwhile the next load finds another.
        let files_mark = self.config.files_mark();
        match self.config.source.clone() {
            ModelSource::Gguf(path) => {
                // At each load, so also when this process is started anew after a crash.
                let pinned = Pinned::check(&path, &self.config.sha256).map_err(|error| error.to_string())?;
                let model = LlamaModel::load(pinned.path(), &self.config, progress)?;
                pinned.check_unchanged().map_err(|error| error.to_string())?;
                self.open(Arc::new(model), files_mark)
            }
            ModelSource::Scripted(scripted) => {
                let model = ScriptedModel::load(&scripted, &self.config, progress);
                self.open(Arc::new(model), files_mark)
            }
        }
    }

    /// Contexts, workers, output and preparers, then `Ready`.
    fn open<M: Model>(self, model: Arc<M>, files_mark: u64) -> Result<(), String> {
        let (items, item_queue) = output::channel();
        let mut description = model.describe();
        description.files_mark = files_mark;
        description.arithmetic_mark = self.config.arithmetic_mark();
        description.sha256 = self.config.sha256.clone();
        let serial = Arc::new(AtomicU64::new(0));
        let constraints = Arc::new(Constraints::new(Arc::clone(&model)));
        let corpus = Corpus::open(&self.config, description.n_vocab, description.generates)?;
        let preparer = |lanes: &Arc<Vec<Lane<M::Sampler>>>, n_ctx: u32| Preparer {
            model: Arc::clone(&model),
            lanes: Arc::clone(lanes),
            registry: Arc::clone(&self.registry),
            sink: Arc::clone(&self.sink),
            serial: Arc::clone(&serial),
            n_ctx,
            n_draft_max: self.config.n_draft_max,
            corpus: corpus.clone(),
            piece_bytes_max: description.piece_bytes_max.max(1),
            n_vocab: description.n_vocab,
            adapter_scales: description.adapters.iter().map(|adapter| adapter.scale).collect(),
            constraints: Arc::clone(&constraints),
            embedder: None,
            sight: None,
        };
        let mut lanes = Vec::new();
        if description.generates {
            let reader = preparer(&Arc::default(), description.n_ctx);
            let named: Vec<Named> = self.config.prefixes.iter().filter_map(|prefix| reader.named(prefix)).collect();
            let mut states = None;
            for index in 0..self.config.n_workers {
                let named = (named.as_slice(), &mut states);
                let (lane, n_ctx_seq) = self.open_worker(&model, index, items.clone(), named)?;
                description.n_ctx = n_ctx_seq;
                lanes.push(lane);
            }
        }
        let embedder =
            description.pooling.map(|pooling| self.open_embedder(&model, &description, pooling)).transpose()?;
        if !description.generates {
            description.n_ctx = description.n_embed_max;
        }
        drop(items);
        let (registry, sink) = (Arc::clone(&self.registry), Arc::clone(&self.sink));
        self.spawn("output".into(), 2 << 20, move || output::run(&item_queue, &registry, &sink))?;
        let lanes = Arc::new(lanes);
        let preparer = |sight: Option<Sight<M>>| Preparer {
            embedder: embedder.clone(),
            sight,
            ..preparer(&lanes, description.n_ctx)
        };
        let sights = if description.media.is_empty() {
            None
        } else {
            // As many as the queue that it is fed from.
            let (works, media_works) = crossbeam_channel::bounded(self.config.n_places() as usize + 1024);
            let (jobs, cache) = self.open_encoder(&model, &lanes)?;
            let takes = description.media.clone();
            let n_at_once_max = self.config.n_ubatch.min(self.config.n_batch);
            let sight = move |works: Option<Sender<Work>>| Sight {
                takes: takes.clone(),
                n_at_once_max,
                cache: Arc::clone(&cache),
                jobs: jobs.clone(),
                works,
            };
            let decoder = preparer(Some(sight(None)));
            self.spawn("prepare-media".into(), PREPARER_STACK_BYTES, move || decoder.run(&media_works))?;
            Some((sight, works))
        };
        for index in 0..N_PREPARERS {
            let preparer = preparer(sights.as_ref().map(|(sight, works)| sight(Some(works.clone()))));
            let works = self.works.clone();
            self.spawn(format!("prepare-{index}"), PREPARER_STACK_BYTES, move || preparer.run(&works))?;
        }
        self.sink.notice(Notice::Ready(Box::new(description)));
        Ok(())
    }

    /// The thread that encodes images and sound; it ends when nobody can send it jobs any more.
    fn open_encoder<M: Model>(
        &self,
        model: &Arc<M>,
        lanes: &Arc<Vec<Lane<M::Sampler>>>,
    ) -> Result<(Sender<encoder::Job<M>>, Arc<Cache>), String> {
        let (jobs, job_queue) = crossbeam_channel::bounded(JOBS_MAX);
        let cache = Arc::new(Cache::default());
        // Any worker's is set when the engine stops.
        let cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner).first().cloned();
        let encoder = encoder::Encoder {
            model: Arc::clone(model),
            cache: Arc::clone(&cache),
            lanes: Arc::clone(lanes),
            registry: Arc::clone(&self.registry),
            sink: Arc::clone(&self.sink),
            cancels: cancels.unwrap_or_default(),
        };
        self.spawn("encode".into(), 8 << 20, move || encoder.run(&job_queue))?;
        Ok((jobs, cache))
    }

    fn open_worker<M: Model>(
        &self,
        model: &Arc<M>,
        index: u32,
        items: Sender<Vec<output::Item>>,
        (named, states): (&[Named], &mut Option<Vec<Saved>>),
    ) -> Result<(Lane<M::Sampler>, u32), String> {
        let cancels = Arc::new(Cancels::default());
        let interrupt: Interrupt = {
            let cancels = Arc::clone(&cancels);
            Arc::new(move || cancels.should_abort())
        };
        let mut context = model.context(&self.config, Arc::clone(&interrupt))?;
        let n_ctx_seq = context.n_ctx_seq();
        let mut pace = Pace::new(self.config.max_gap, context.n_batch(), self.config.n_ubatch);
        let mut cost = StepCost::within(self.config.max_gap);
        worker::warm_up(&mut context, 0, &mut pace, &mut cost)?;
        let speculation = worker::warm_up_drafts(&mut context, 0, self.config.n_slots, self.config.draft.always)?;
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&cancels));
        // The first worker computes them and counts their memory; the others have the same.
        let (named, named_bytes) = match states {
            Some(states) => (states.clone(), 0),
            None => {
                let states = states.insert(self.warm_named(&model.describe(), &mut context, named)?);
                (states.clone(), prefix::n_bytes(states))
            }
        };
        // There before the worker's thread first runs: whoever asks for the slots at once sees them all.
        let idle = |slot| SlotStats { slot, state: "idle".to_owned(), ..Default::default() };
        let slots = (0..self.config.n_slots).map(idle).collect();
        let stats = WorkerStats { slots, kv_cells_total: context.n_cells(), named_bytes, ..Default::default() };
        let stats = Arc::new(Mutex::new(stats));
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&stats));
        // The front's places bound what can come in.
        let (runs, incoming) = crossbeam_channel::bounded(self.config.n_places() as usize + 1);
        let reopen = {
            let (model, config) = (Arc::clone(model), self.config.clone());
            Box::new(move || model.context(&config, Arc::clone(&interrupt)))
        };
        let parts = Parts {
            model: Arc::clone(model),
            context,
            reopen,
            n_slots: self.config.n_slots,
            incoming,
            cancels,
            items,
            pace,
            cost,
            n_draft_max: self.config.n_draft_max,
            speculation,
            masks: Masks::start()?,
            stats,
            named,
            n_bytes_saved: self.config.saved_bytes() / self.config.n_workers.max(1) as usize,
        };
        let sink = Arc::clone(&self.sink);
        self.spawn(format!("worker-{index}"), 8 << 20, move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| Worker::new(parts).run()));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(broken)) => {
                    // The output thread is writing the endings; in a child, the process leaves right after.
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    sink.broken(&broken.0);
                }
                Err(_) => sink.broken("a worker panicked; this is a bug"),
            }
        })?;
        Ok((Lane::new(runs), n_ctx_seq))
    }

    /// The states of the prefixes that the operator named.
    fn warm_named<C: Context>(
        &self,
        model: &Description,
        context: &mut C,
        named: &[Named],
    ) -> Result<Vec<Saved>, String> {
        let folder = if named.is_empty() { None } else { Folder::of(&self.config, model, context.n_ctx_seq()) };
        let scales: Vec<f32> = model.adapters.iter().map(|adapter| adapter.scale).collect();
        let adapters = super::adapters::chosen(&scales, None).map_err(|failure| failure.to_string())?;
        prefix::warm(context, named, folder.as_ref(), &adapters)
    }

    /// The thread that makes vectors, with a context of its own.
    fn open_embedder<M: Model>(
        &self,
        model: &Arc<M>,
        description: &Description,
        pooling: Pooling,
    ) -> Result<Embedder, String> {
        let cancels = Arc::new(Cancels::default());
        let interrupt: Interrupt = {
            let cancels = Arc::clone(&cancels);
            Arc::new(move || cancels.should_abort())
        };
        let mut encoder = model.encoder(Arc::clone(&interrupt))?;
        embed::warm_up(&mut encoder)?;
        let stats = Arc::new(Mutex::new(WorkerStats::default()));
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&stats));
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&cancels));
        // The front admits fewer short requests at once than this.
        let (jobs, incoming) = crossbeam_channel::bounded(1024);
        let reopen = {
            let model = Arc::clone(model);
            Box::new(move || model.encoder(Arc::clone(&interrupt)))
        };
        let (registry, sink) = (Arc::clone(&self.registry), Arc::clone(&self.sink));
        let parts = embed::Parts { encoder, reopen, incoming, cancels, registry, sink, stats };
        let sink = Arc::clone(&self.sink);
        self.spawn("embed".into(), 8 << 20, move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| embed::Worker::new(parts).run()));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => sink.broken(&reason),
                Err(_) => sink.broken("the embeddings worker panicked; this is a bug"),
            }
        })?;
        let shape = embed::InputShape {
            is_per_token: pooling == Pooling::None,
            n_max: description.n_embed_max,
            n_vocab: description.n_vocab,
            n_embd: description.n_embd_out,
        };
        Ok(Embedder { jobs, shape: Arc::new(shape), pooling })
    }

    fn spawn(&self, name: String, stack: usize, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
        let thread = std::thread::Builder::new().name(name).stack_size(stack).spawn(body);
        let thread = thread.map_err(|error| format!("no thread can be started: {error}"))?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }
}
