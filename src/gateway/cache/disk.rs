//! Answers on disk, for the next start.
//!
//! **Invariant:** what can't be opened is not there. A file that is damaged, moved, out of date or of another build is a
//! miss, and goes; no request fails because of this folder, and none waits for it to be written.
//!
//! # Design
//! One file for each answer, in a folder for each owner. Names are digests under a secret of the server's, so that a list
//! of them confirms no guess of what was asked; a file is sealed under a key of its owner's, bound to its place and its
//! times. Files rather than a database: to drop an owner is to remove a folder, half a file does not open, and nothing has
//! to be synced. One thread writes, tidies and counts; requests read by themselves.

use super::{Entry, Epoch, Key, Owner};
use crate::gateway::seal::{NONCE_LEN, seal, unseal};
use crate::gateway::{hmac, unix_ms};
use crate::model::lock::hex;
use lru::LruCache;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const MAGIC: [u8; 8] = *b"hearthA1";
const MARK_BYTES: usize = 16;
/// Magic, mark, made, expires (unix milliseconds, little-endian).
const HEAD_BYTES: usize = MAGIC.len() + MARK_BYTES + 16;
/// What a file takes at least, so that the bound on bytes bounds their number.
const BLOCK: u64 = 4096;
/// Answers that wait to be written, and their part of the bound on bytes; one more is kept in memory alone.
const QUEUE_MAX: usize = 256;
const WAITING_SHARE: usize = 4;
/// Between two looks for answers that are out of date.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// A clock may have been set back by this much; what was made later than that is not believed.
const CLOCK_SLACK_MS: i64 = 60_000;
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Between two looks for a place in the queue.
const CLOSE_LOOK: Duration = Duration::from_millis(10);

/// Where answers are kept, and how much of them.
pub(super) struct DiskConfig {
    pub dir: PathBuf,
    /// Names and seals follow from it.
    pub secret: [u8; 32],
    pub ttl: Duration,
    /// **Bound** of all files together, each counted in whole blocks.
    pub bytes_max: u64,
    /// What is kept of others goes at the start: their keys were deleted while no server ran.
    pub owners: HashSet<Owner>,
}

pub(super) struct Disk {
    shared: Arc<Shared>,
    jobs: SyncSender<Job>,
}

enum Job {
    Write(Key, Arc<Entry>, Arc<Epoch>),
    Close(SyncSender<()>),
}

struct Shared {
    config: DiskConfig,
    /// Of this build: what another one wrote may mean something else.
    mark: [u8; MARK_BYTES],
    index: Mutex<Index>,
    /// The index knows all files now.
    scanned: Condvar,
    /// Bytes of answers that wait to be written.
    n_waiting: AtomicUsize,
    /// The last file was written.
    is_well: AtomicBool,
}

struct Index {
    /// **Bound:** `bytes_max`; the least recently used go first.
    slots: LruCache<Place, Slot>,
    n_bytes: u64,
    n_written: u64,
    is_scanned: bool,
}

#[derive(Clone, Copy)]
struct Slot {
    n_bytes: u64,
    /// Unix milliseconds.
    expires: i64,
    /// Which of all writes it was.
    n: u64,
}

/// An owner's folder.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Folder {
    kind: u8,
    digest: [u8; 16],
}

/// Where an answer lies: the folder of its owner, and its name there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    folder: Folder,
    name: [u8; 32],
}

impl Folder {
    /// See [`Owner::is_fixed`].
    pub(super) fn is_fixed(&self) -> bool {
        self.kind == b'f'
    }

    fn parse(name: &str) -> Option<Self> {
        let (kind, rest) = (*name.as_bytes().first()?, name.get(1..)?);
        let digest = unhex(rest).filter(|_| b"ktf".contains(&kind))?;
        Some(Self { kind, digest })
    }

    fn file_name(&self) -> String {
        format!("{}{}", char::from(self.kind), hex(&self.digest))
    }
}

impl Disk {
    /// Opens the folder, or makes it for its owner alone. Errors: it can't be made, or the thread can't be started.
    pub(super) fn open(config: DiskConfig) -> io::Result<Arc<Self>> {
        DirBuilder::new().recursive(true).mode(0o700).create(&config.dir)?;
        let shared = Arc::new(Shared {
            config,
            mark: mark(),
            index: Mutex::new(Index { slots: LruCache::unbounded(), n_bytes: 0, n_written: 0, is_scanned: false }),
            scanned: Condvar::new(),
            n_waiting: AtomicUsize::new(0),
            is_well: AtomicBool::new(true),
        });
        let (jobs, received) = sync_channel(QUEUE_MAX);
        let writer = Arc::clone(&shared);
        std::thread::Builder::new().name("cache-disk".into()).spawn(move || writer.run(&received))?;
        Ok(Arc::new(Self { shared, jobs }))
    }

    /// The answer under `key`, if it is there and good. Blocks on the disk.
    pub(super) fn read(&self, key: &Key) -> Option<Entry> {
        self.shared.read(key)
    }

    /// Whether it is worth a look.
    pub(super) fn may_have(&self, key: &Key) -> bool {
        let place = self.shared.place(key);
        let index = self.shared.lock();
        !index.is_scanned || index.slots.contains(&place)
    }

    /// The answer was used.
    pub(super) fn touch(&self, key: &Key) {
        let place = self.shared.place(key);
        self.shared.lock().slots.promote(&place);
    }

    /// Has an answer written, soon; one that finds too many before it is not.
    pub(super) fn put(&self, key: Key, entry: Arc<Entry>, epoch: Arc<Epoch>) {
        let (n, shared) = (entry.n_bytes, &self.shared);
        let n_before = shared.n_waiting.fetch_add(n, Ordering::Relaxed);
        let most = usize::try_from(shared.config.bytes_max).unwrap_or(usize::MAX) / WAITING_SHARE;
        if n_before.saturating_add(n) > most || self.jobs.try_send(Job::Write(key, entry, epoch)).is_err() {
            shared.n_waiting.fetch_sub(n, Ordering::Relaxed);
            tracing::debug!("an answer is kept in memory alone: too many wait to be written");
        }
    }

    /// Forgets the answers in the folders that `goes` names; returns where they lay. Blocks on the disk. Their owners' epochs
    /// have ended, or what waits to be written comes after.
    pub(super) fn forget(&self, goes: impl Fn(&Folder) -> bool) -> HashSet<Place> {
        self.shared.forget(goes)
    }

    pub(super) fn folder(&self, owner: Owner) -> Folder {
        self.shared.folder(owner)
    }

    pub(super) fn place(&self, key: &Key) -> Place {
        self.shared.place(key)
    }

    /// Bytes of all files.
    pub(super) fn n_bytes(&self) -> u64 {
        self.shared.lock().n_bytes
    }

    /// Returns when what waits is written, or after a few seconds. Blocks.
    pub(super) fn close(&self) {
        let until = Instant::now() + CLOSE_WAIT;
        let (done, written) = sync_channel(1);
        let mut job = Job::Close(done);
        // The queue may be full, and the disk stand still.
        while let Err(TrySendError::Full(again)) = self.jobs.try_send(job) {
            if Instant::now() >= until {
                return unwritten();
            }
            job = again;
            std::thread::sleep(CLOSE_LOOK);
        }
        if written.recv_timeout(until.saturating_duration_since(Instant::now())).is_err() {
            unwritten();
        }
    }
}

fn unwritten() {
    tracing::warn!("some of the last answers were not written for the next start");
}

/// Of the executable that runs: its version, its size and when it was made.
fn mark() -> [u8; MARK_BYTES] {
    let mut hasher = Sha256::new_with_prefix(env!("CARGO_PKG_VERSION"));
    if let Ok(file) = std::env::current_exe().and_then(fs::metadata) {
        for part in [file.len().to_le_bytes(), file.mtime().to_le_bytes(), file.mtime_nsec().to_le_bytes()] {
            hasher.update(part);
        }
    }
    cut(&hasher.finalize())
}

fn cut<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

impl Shared {
    fn run(&self, jobs: &Receiver<Job>) {
        self.scan();
        self.lock().is_scanned = true;
        self.scanned.notify_all();
        let mut swept = Instant::now();
        loop {
            match jobs.recv_timeout(SWEEP_EVERY.saturating_sub(swept.elapsed())) {
                Ok(Job::Write(key, entry, epoch)) => {
                    self.write(&key, &entry, &epoch);
                    self.n_waiting.fetch_sub(entry.n_bytes, Ordering::Relaxed);
                }
                Ok(Job::Close(done)) => drop(done.send(())),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if swept.elapsed() >= SWEEP_EVERY {
                swept = Instant::now();
                self.sweep(unix_ms());
            }
        }
    }

    /// Counts what an earlier server left, the newest as the most recently used. What can't be of use goes.
    fn scan(&self) {
        let known: HashSet<_> = self.config.owners.iter().map(|owner| self.folder(*owner)).collect();
        let now = unix_ms();
        let mut found: Vec<(i64, Place, Slot)> = Vec::new();
        for folder in files_of(&self.config.dir) {
            let Some(of) = folder.file_name().and_then(|name| Folder::parse(name.to_str()?)) else { continue };
            let is_known = of.is_fixed() || known.contains(&of);
            for path in files_of(&folder) {
                let name = path.file_name().and_then(|name| unhex::<32>(name.to_str()?));
                let head = name.filter(|_| is_known).and_then(|_| self.head_of(&path, now));
                match (name, head) {
                    (Some(name), Some((made, slot))) => found.push((made, Place { folder: of, name }, slot)),
                    _ => remove(&path),
                }
            }
            // One that is not empty stays.
            let _ = fs::remove_dir(&folder);
        }
        found.sort_unstable_by_key(|(made, ..)| *made);
        let mut gone = Vec::new();
        let mut index = self.lock();
        for (_, place, slot) in found {
            // What was written meanwhile is newer.
            if !index.slots.contains(&place) {
                gone.extend(index.make_room(self.config.bytes_max, slot.n_bytes));
                index.put(place, slot);
            }
        }
        drop(index);
        gone.iter().for_each(|place| self.remove(place));
    }

    fn head_of(&self, path: &Path, now: i64) -> Option<(i64, Slot)> {
        let mut file = File::open(path).ok()?;
        let n_bytes = file.metadata().ok().filter(fs::Metadata::is_file)?.len();
        let mut head = [0; HEAD_BYTES];
        file.read_exact(&mut head).ok()?;
        let (made, expires) = self.times(&head, now)?;
        let n_bytes = blocks(n_bytes);
        // One that is larger than all may be together would push out all others.
        (n_bytes <= self.config.bytes_max).then_some((made, Slot { n_bytes, expires, n: 0 }))
    }

    /// When a file's answer was made and until when it is good; `None` where it is not.
    fn times(&self, head: &[u8], now: i64) -> Option<(i64, i64)> {
        let rest = head.strip_prefix(&MAGIC)?.strip_prefix(&self.mark)?;
        let (made, rest) = rest.split_first_chunk()?;
        let (made, expires) = (i64::from_le_bytes(*made), i64::from_le_bytes(*rest.first_chunk()?));
        // Kept no longer than the operator says now.
        let ttl = i64::try_from(self.config.ttl.as_millis()).unwrap_or(i64::MAX);
        let expires = expires.min(made.saturating_add(ttl));
        (made <= now.saturating_add(CLOCK_SLACK_MS) && now < expires).then_some((made, expires))
    }

    fn read(&self, key: &Key) -> Option<Entry> {
        let place = self.place(key);
        let path = self.path(&place);
        let bytes = match read_file(&path, self.config.bytes_max) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("a kept answer can't be read: {error}");
                }
                self.lock().pop(&place);
                return None;
            }
        };
        let entry = self.open(key, &place, &bytes);
        if entry.is_none() {
            self.lock().pop(&place);
            remove(&path);
        }
        entry
    }

    fn open(&self, key: &Key, place: &Place, bytes: &[u8]) -> Option<Entry> {
        let now = unix_ms();
        let (head, sealed) = bytes.split_at_checked(HEAD_BYTES)?;
        let (made, expires) = self.times(head, now)?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let plain = unseal(&self.seal_key(key.owner), &about(place, head), *nonce, sealed)?;
        let (age, left) = (u64::try_from(now - made).unwrap_or(0), u64::try_from(expires - now).unwrap_or(0));
        let instant = Instant::now();
        let made = instant.checked_sub(Duration::from_millis(age))?;
        Entry::from_bytes(&plain, made, instant.checked_add(Duration::from_millis(left))?)
    }

    fn write(&self, key: &Key, entry: &Entry, epoch: &Epoch) {
        let (now, instant) = (unix_ms(), Instant::now());
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let made = now.saturating_sub(ms(instant.saturating_duration_since(entry.made)));
        let expires = now.saturating_add(ms(entry.expires.saturating_duration_since(instant)));
        let place = self.place(key);
        let mut bytes = Vec::with_capacity(HEAD_BYTES + NONCE_LEN + entry.n_bytes);
        bytes.extend(MAGIC);
        bytes.extend(self.mark);
        bytes.extend(made.to_le_bytes());
        bytes.extend(expires.to_le_bytes());
        let Some((nonce, sealed)) = seal(&self.seal_key(key.owner), &about(&place, &bytes), &entry.to_bytes()) else {
            return self.failed(&"the system has no randomness to give");
        };
        bytes.extend(nonce);
        bytes.extend(sealed);
        let n_bytes = blocks(bytes.len() as u64);
        if n_bytes > self.config.bytes_max || expires <= now {
            return;
        }
        let (n, mut gone) = {
            let mut index = self.lock();
            // Under the index's lock: whoever forgets an owner ends its epoch first, and then takes this lock.
            if epoch.has_ended() {
                return;
            }
            let mut gone: Vec<Place> = index.pop(&place).then_some(place).into_iter().collect();
            gone.extend(index.make_room(self.config.bytes_max, n_bytes));
            index.n_written += 1;
            let n = index.n_written;
            index.put(place, Slot { n_bytes, expires, n });
            (n, gone)
        };
        gone.drain(..).for_each(|place| self.remove(&place));
        match self.write_file(&place, &bytes) {
            Ok(()) => {
                if !self.is_well.swap(true, Ordering::Relaxed) {
                    tracing::info!("answers are written for the next start again");
                }
            }
            Err(error) => {
                self.lock().pop(&place);
                self.failed(&error);
            }
        }
        // It was forgotten while it was written.
        if self.lock().slots.peek(&place).is_none_or(|slot| slot.n != n) {
            self.remove(&place);
        }
    }

    fn write_file(&self, place: &Place, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(place);
        if let Some(dir) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let part = path.with_extension("part");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&part).and_then(|mut file| file.write_all(bytes));
        written.and_then(|()| fs::rename(&part, &path)).inspect_err(|_| remove(&part))
    }

    /// Once for a series of failures.
    fn failed(&self, error: &dyn std::fmt::Display) {
        if self.is_well.swap(false, Ordering::Relaxed) {
            tracing::warn!("answers can't be written for the next start: {error}");
        }
    }

    fn sweep(&self, now: i64) {
        let mut index = self.lock();
        let mut old: Vec<Place> =
            index.slots.iter().filter(|(_, slot)| slot.expires <= now).map(|(place, _)| *place).collect();
        old.retain(|place| index.pop(place));
        drop(index);
        old.iter().for_each(|place| self.remove(place));
    }

    fn forget(&self, goes: impl Fn(&Folder) -> bool) -> HashSet<Place> {
        let index = self.scanned.wait_while(self.lock(), |index| !index.is_scanned);
        let mut index = index.unwrap_or_else(PoisonError::into_inner);
        let mut gone: HashSet<Place> =
            index.slots.iter().map(|(place, _)| *place).filter(|place| goes(&place.folder)).collect();
        gone.retain(|place| index.pop(place));
        drop(index);
        gone.iter().for_each(|place| self.remove(place));
        gone
    }

    fn remove(&self, place: &Place) {
        let path = self.path(place);
        remove(&path);
        // One that is not empty stays.
        let _ = path.parent().map(fs::remove_dir);
    }

    fn folder(&self, owner: Owner) -> Folder {
        let (kind, n) = owner.parts();
        Folder { kind, digest: cut(&hmac(&self.config.secret, &[b"owner\0", &[kind], &n.to_le_bytes()])) }
    }

    fn place(&self, key: &Key) -> Place {
        let folder = self.folder(key.owner);
        let name = hmac(&self.config.secret, &[b"name\0", &[folder.kind], &folder.digest, &key.digest]);
        Place { folder, name }
    }

    fn seal_key(&self, owner: Owner) -> [u8; 32] {
        let (kind, n) = owner.parts();
        hmac(&self.config.secret, &[b"seal\0", &[kind], &n.to_le_bytes()])
    }

    fn path(&self, place: &Place) -> PathBuf {
        self.config.dir.join(place.folder.file_name()).join(hex(&place.name))
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn put(&mut self, place: Place, slot: Slot) {
        self.n_bytes += slot.n_bytes;
        if let Some(before) = self.slots.put(place, slot) {
            self.n_bytes -= before.n_bytes;
        }
    }

    /// Whether it was there.
    fn pop(&mut self, place: &Place) -> bool {
        let slot = self.slots.pop(place);
        self.n_bytes -= slot.map_or(0, |slot| slot.n_bytes);
        slot.is_some()
    }

    /// Those that have to go for `n` more bytes.
    fn make_room(&mut self, bytes_max: u64, n: u64) -> Vec<Place> {
        let mut gone = Vec::new();
        while self.n_bytes.saturating_add(n) > bytes_max {
            let Some((place, slot)) = self.slots.pop_lru() else { break };
            self.n_bytes -= slot.n_bytes;
            gone.push(place);
        }
        gone
    }
}

/// What a seal is bound to.
fn about(place: &Place, head: &[u8]) -> Vec<u8> {
    [head, &[place.folder.kind], &place.folder.digest, &place.name].concat()
}

fn blocks(n: u64) -> u64 {
    n.div_ceil(BLOCK).max(1) * BLOCK
}

fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let n = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(n.min(most)).unwrap_or(0));
    // One that is longer does not open.
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What lies in a folder; one that can't be read is empty.
fn files_of(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// A file that can't be removed is counted at the next start.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("a kept answer can't be removed: {error}");
    }
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let is_hex = text.len() == 2 * N && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    for (i, byte) in bytes.iter_mut().enumerate().filter(|_| is_hex) {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    is_hex.then_some(bytes)
}
