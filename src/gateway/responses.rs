//! Responses that were answered and may be asked for again: kept for each tenant, for a while.
//!
//! **Invariant:** nobody gets at what another key stored; what is deleted, too old or pushed out is gone, from the disk too.
//!
//! # Design
//! Memory is the truth. With a folder, every change is also written there (one file a response), so that responses outlive
//! a restart; nothing is written without one. Files are written outside the lock by [`ResponseStore::flush`], which writes
//! what changed since the last time, so changes that come faster than the disk cost no more memory than their ids.
//!
//! **Bounds:** count, bytes and age, each from [`ResponsesConfig`]. When count or bytes are over, the tenant that takes the
//! most of it loses its oldest response. Items that several responses of one conversation share are counted with each.

use crate::dialect::responses::Item;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponsesConfig {
    /// Responses kept at once; 0: none are.
    pub count_max: usize,
    /// Bytes of JSON text kept at once.
    pub bytes_max: usize,
    pub age_max: Duration,
    /// Where they are kept beside memory; `None`: nowhere.
    pub dir: Option<PathBuf>,
}

impl Default for ResponsesConfig {
    fn default() -> Self {
        Self { count_max: 256, bytes_max: 256 << 20, age_max: Duration::from_secs(3600), dir: None }
    }
}

/// A response that is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredResponse {
    pub id: String,
    /// The object as JSON text.
    pub object: String,
    /// What was said before: the items of the responses it goes on from.
    pub prior: Vec<Arc<Item>>,
    /// The request's own items.
    pub input: Vec<Arc<Item>>,
    pub output: Vec<Arc<Item>>,
}

impl StoredResponse {
    /// Everything that a response after it goes on from.
    pub fn conversation(&self) -> Vec<Arc<Item>> {
        [&self.prior, &self.input, &self.output].into_iter().flatten().cloned().collect()
    }

    fn n_bytes(&self) -> usize {
        let items = [&self.prior, &self.input, &self.output].into_iter().flatten();
        self.object.len() + self.id.len() + items.map(|item| item.n_bytes + item.id.len()).sum::<usize>()
    }

    fn own_items(&self) -> impl Iterator<Item = &Arc<Item>> {
        self.input.iter().chain(&self.output)
    }
}

struct Entry {
    tenant: u64,
    /// Nanoseconds since 1970: also the order in which a folder is read again.
    stored_at: u64,
    n_bytes: usize,
    response: Arc<StoredResponse>,
    /// Its own items by their ids.
    items: HashMap<String, Arc<Item>>,
}

#[derive(Default)]
struct Kept {
    /// Oldest first.
    entries: VecDeque<Entry>,
    n_bytes: usize,
    /// Ids whose files are not as memory is. **Bound:** [`CHANGED_MAX`]; past it the whole folder is compared.
    changed: HashSet<String>,
    compare_all: bool,
}

const CHANGED_MAX: usize = 4096;

pub struct ResponseStore {
    config: ResponsesConfig,
    kept: Mutex<Kept>,
    /// Held while files are written, so that they are written in the order of the changes.
    writing: Mutex<()>,
}

impl ResponseStore {
    /// With a folder, what it holds is read; files that can't be are left alone and logged.
    pub fn open(config: ResponsesConfig) -> Self {
        let mut kept = Kept::default();
        if let Some(dir) = &config.dir {
            match read_dir(dir) {
                Ok(mut entries) => {
                    entries.sort_by_key(|entry| entry.stored_at);
                    entries.into_iter().for_each(|entry| kept.push(entry));
                    kept.changed.clear();
                    kept.compare_all = false;
                }
                Err(error) => tracing::error!(%error, "the stored responses can't be read"),
            }
        }
        let store = Self { config, kept: Mutex::new(kept), writing: Mutex::new(()) };
        store.flush();
        store
    }

    /// Whether a response of this size is kept.
    pub fn holds(&self, n_bytes: usize) -> bool {
        self.config.count_max > 0 && n_bytes <= self.config.bytes_max
    }

    pub fn config(&self) -> &ResponsesConfig {
        &self.config
    }

    /// Whether changes are to be [flushed](Self::flush).
    pub fn is_on_disk(&self) -> bool {
        self.config.dir.is_some()
    }

    pub fn insert(&self, tenant: u64, response: StoredResponse) {
        let entry = Entry::new(tenant, now(), response);
        if !self.holds(entry.n_bytes) {
            tracing::warn!(n_bytes = entry.n_bytes, "a response is too large to be kept");
            return;
        }
        let mut kept = self.lock();
        kept.push(entry);
        kept.trim(&self.config);
    }

    pub fn get(&self, tenant: u64, id: &str) -> Option<Arc<StoredResponse>> {
        let kept = self.lock();
        let entry = kept.entries.iter().rev().find(|entry| entry.tenant == tenant && entry.response.id == id)?;
        Some(Arc::clone(&entry.response))
    }

    /// An item of any response of this tenant, the newest if several have one of this id.
    pub fn item(&self, tenant: u64, id: &str) -> Option<Arc<Item>> {
        let kept = self.lock();
        let own = kept.entries.iter().rev().filter(|entry| entry.tenant == tenant);
        own.into_iter().find_map(|entry| entry.items.get(id)).cloned()
    }

    /// Whether it was there.
    pub fn remove(&self, tenant: u64, id: &str) -> bool {
        let mut kept = self.lock();
        let at = kept.entries.iter().position(|entry| entry.tenant == tenant && entry.response.id == id);
        at.is_some_and(|at| kept.remove(at))
    }

    /// What is there, without what is too old.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = now().saturating_sub(self.config.age_max.as_nanos() as u64);
        while kept.entries.front().is_some_and(|entry| entry.stored_at < oldest) {
            kept.remove(0);
        }
        kept.trim(&self.config);
        kept
    }

    /// Makes the folder as memory is; blocks on the disk.
    pub fn flush(&self) {
        let Some(dir) = &self.config.dir else { return };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (changed, compare_all) = {
            let mut kept = self.lock();
            (std::mem::take(&mut kept.changed), std::mem::take(&mut kept.compare_all))
        };
        let ids = if compare_all { self.ids().into_iter().chain(ids_in(dir)).collect() } else { changed };
        for id in ids {
            let entry = {
                let kept = self.lock();
                let entry = kept.entries.iter().find(|entry| entry.response.id == id);
                entry.map(|entry| (entry.tenant, entry.stored_at, Arc::clone(&entry.response)))
            };
            let path = dir.join(format!("{id}.json"));
            let done = match entry {
                Some((tenant, stored_at, response)) => write(&path, tenant, stored_at, &response),
                None => fs::remove_file(&path).or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                }),
            };
            if let Err(error) = done {
                tracing::error!(%error, "a stored response can't be written or removed");
            }
        }
    }

    fn ids(&self) -> HashSet<String> {
        self.lock().entries.iter().map(|entry| entry.response.id.clone()).collect()
    }
}

impl Drop for ResponseStore {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Entry {
    fn new(tenant: u64, stored_at: u64, response: StoredResponse) -> Self {
        let items = response.own_items().map(|item| (item.id.clone(), Arc::clone(item))).collect();
        Self { tenant, stored_at, n_bytes: response.n_bytes(), response: Arc::new(response), items }
    }
}

impl Kept {
    fn push(&mut self, entry: Entry) {
        self.note(entry.response.id.clone());
        self.n_bytes += entry.n_bytes;
        self.entries.push_back(entry);
    }

    fn remove(&mut self, at: usize) -> bool {
        let Some(entry) = self.entries.remove(at) else { return false };
        self.n_bytes -= entry.n_bytes;
        self.note(entry.response.id.clone());
        true
    }

    fn note(&mut self, id: String) {
        if self.changed.len() < CHANGED_MAX {
            self.changed.insert(id);
        } else {
            self.compare_all = true;
        }
    }

    fn trim(&mut self, config: &ResponsesConfig) {
        while self.entries.len() > config.count_max {
            self.push_out(|_| 1);
        }
        while self.n_bytes > config.bytes_max {
            self.push_out(|entry| entry.n_bytes);
        }
    }

    /// Removes the oldest response of the tenant that weighs the most.
    fn push_out(&mut self, weight: impl Fn(&Entry) -> usize) {
        let mut weights: HashMap<u64, usize> = HashMap::new();
        for entry in &self.entries {
            *weights.entry(entry.tenant).or_default() += weight(entry);
        }
        let heaviest = weights.into_iter().max_by_key(|(_, weight)| *weight).map(|(tenant, _)| tenant);
        let at = self.entries.iter().position(|entry| Some(entry.tenant) == heaviest);
        self.remove(at.unwrap_or(0));
    }
}

/// Nanoseconds since 1970; they fit until the year 2554.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Written beside and moved, so that a crash leaves no half of a file.
fn write(path: &Path, tenant: u64, stored_at: u64, response: &StoredResponse) -> io::Result<()> {
    let list = |items: &[Arc<Item>]| items.iter().map(|item| item.json.clone()).collect::<Vec<_>>();
    let text = json!({
        "tenant": tenant,
        "stored_at": stored_at,
        "id": response.id,
        "object": response.object,
        "prior": list(&response.prior),
        "input": list(&response.input),
        "output": list(&response.output),
    })
    .to_string();
    let beside = path.with_extension("part");
    write_private(&beside, text.as_bytes())?;
    fs::rename(&beside, path)
}

#[cfg(unix)]
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

#[cfg(not(unix))]
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)
}

/// Ids of the responses that a folder holds; other files are none of ours.
fn ids_in(dir: &Path) -> HashSet<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| Some(name.to_str()?.strip_suffix(".json")?.to_owned())).filter(|id| is_id(id)).collect()
}

fn is_id(id: &str) -> bool {
    id.strip_prefix("resp_").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn read_dir(dir: &Path) -> io::Result<Vec<Entry>> {
    for left in fs::read_dir(dir)?.flatten().map(|entry| entry.path()) {
        let is_ours = left.file_stem().and_then(|stem| stem.to_str()).is_some_and(is_id);
        if is_ours && left.extension().is_some_and(|ending| ending == "part") {
            fs::remove_file(left)?;
        }
    }
    let mut entries = Vec::new();
    for id in ids_in(dir) {
        match read(&dir.join(format!("{id}.json"))) {
            Some(entry) if entry.response.id == id => entries.push(entry),
            _ => tracing::warn!(id, "a stored response can't be read"),
        }
    }
    Ok(entries)
}

fn read(path: &Path) -> Option<Entry> {
    let mut value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let mut list = |key: &str| match value[key].take() {
        Value::Array(items) => items.into_iter().map(|item| Item::from_json(item).map(Arc::new)).collect(),
        _ => None::<Vec<_>>,
    };
    let (prior, input, output) = (list("prior")?, list("input")?, list("output")?);
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let response = StoredResponse { id: text("id")?, object: text("object")?, prior, input, output };
    Some(Entry::new(value["tenant"].as_u64()?, value["stored_at"].as_u64()?, response))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str) -> Arc<Item> {
        Arc::new(Item::new(id.to_owned(), json!({ "id": id, "type": "message" })))
    }

    fn response(n: usize) -> StoredResponse {
        let (input, output) = (vec![item(&format!("in{n}"))], vec![item(&format!("out{n}"))]);
        StoredResponse { id: format!("resp_{n}"), object: format!("{{\"n\":{n}}}"), prior: vec![], input, output }
    }

    fn store(change: impl FnOnce(&mut ResponsesConfig)) -> ResponseStore {
        let mut config = ResponsesConfig::default();
        change(&mut config);
        ResponseStore::open(config)
    }

    /// RESP-13
    #[test]
    fn the_oldest_of_too_many_is_gone() {
        let store = store(|_| {});
        (0..300).for_each(|n| store.insert(0, response(n)));
        assert_eq!(store.ids().len(), 256);
        assert!(store.get(0, "resp_43").is_none() && store.item(0, "out43").is_none());
        assert!(store.get(0, "resp_44").is_some() && store.item(0, "out299").is_some());
        let kept = store.lock();
        assert_eq!(kept.n_bytes, kept.entries.iter().map(|entry| entry.n_bytes).sum::<usize>());
    }

    #[test]
    fn bytes_are_bounded_too() {
        let one = Entry::new(0, 0, response(0)).n_bytes;
        let store = store(|config| config.bytes_max = 2 * one);
        (0..5).for_each(|n| store.insert(0, response(n)));
        assert_eq!(store.ids(), HashSet::from(["resp_3".to_owned(), "resp_4".to_owned()]));
        let large = StoredResponse { object: "x".repeat(3 * one), ..response(5) };
        store.insert(0, large);
        assert_eq!(store.ids().len(), 2, "a response that can't be kept pushes nothing out");
    }

    #[test]
    fn a_tenant_sees_and_pushes_out_only_its_own() {
        let store = store(|config| config.count_max = 4);
        store.insert(1, response(0));
        (1..10).for_each(|n| store.insert(2, response(n)));
        assert!(store.get(1, "resp_0").is_some() && store.get(2, "resp_0").is_none());
        assert!(store.item(1, "out9").is_none() && !store.remove(1, "resp_9") && store.remove(2, "resp_9"));
        assert!(!store.remove(2, "resp_9"));
    }

    #[test]
    fn the_old_are_gone() {
        let store = store(|config| config.age_max = Duration::from_secs(10));
        store.insert(0, response(0));
        store.kept.lock().unwrap().entries[0].stored_at -= 11_000_000_000;
        assert!(store.get(0, "resp_0").is_none());
        assert_eq!(store.lock().n_bytes, 0);
    }

    #[test]
    fn a_folder_outlives_the_store_and_forgets_what_was_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = || Some(dir.path().to_owned());
        let first = store(|config| config.dir = path());
        (0..3).for_each(|n| first.insert(7, response(n)));
        first.flush();
        assert!(first.remove(7, "resp_1"));
        first.flush();
        assert_eq!(ids_in(dir.path()).len(), 2);
        drop(first);
        fs::write(dir.path().join("notes.json"), "mine").unwrap();
        fs::write(dir.path().join("resp_bad.json"), "{").unwrap();
        let second = store(|config| config.dir = path());
        assert_eq!(*second.get(7, "resp_2").unwrap(), response(2));
        assert!(second.get(7, "resp_1").is_none() && second.item(7, "out0").is_some());
        second.kept.lock().unwrap().compare_all = true;
        (3..9).for_each(|n| second.insert(7, response(n)));
        second.flush();
        assert_eq!(ids_in(dir.path()), second.ids());
        assert!(dir.path().join("notes.json").exists());
        let third = store(|config| (config.dir, config.count_max) = (path(), 1));
        drop(third);
        assert_eq!(ids_in(dir.path()), HashSet::from(["resp_8".to_owned()]));
    }

    #[cfg(unix)]
    #[test]
    fn files_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let store = store(|config| config.dir = Some(dir.path().to_owned()));
        store.insert(0, response(0));
        store.flush();
        let mode = fs::metadata(dir.path().join("resp_0.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
