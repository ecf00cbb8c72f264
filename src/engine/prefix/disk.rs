//! States of named prefixes in a folder, for the next start.
//!
//! # Design
//! One file for each prefix, named after all that must be the same for its state to be of use: the digests of all the model's
//! files and of the adapters, hearth's version (which tokens a prefix has, how a state is written), llama.cpp's build, its
//! code for the CPU and the layers on a GPU (another's last bits are others), the shape of the context, and the tokens.
//! A file is written beside its name and renamed, so it is there as a whole or not at all; its last 32 bytes are the SHA-256 of all before, so damage is noticed before
//! llama.cpp reads any of it. What can't be read is computed anew, with a line in the log.
//!
//! The folder has a bound. What was not used for the longest time goes first, which is how files of models, builds and
//! prefixes that are no more go; a file's time of modification says when it was used. Several engines may share a folder, so
//! that a file which fits none of ours is no rubbish by that alone.

use super::super::backend::Token;
use crate::engine::config::{EngineConfig, ModelSource};
use crate::engine::event::Description;
use crate::model::ModelFile;
use crate::model::lock::{self, Mark, hex};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const MAGIC: &[u8; 16] = b"hearth prefix 1\n";
const DIGEST_BYTES: usize = 32;
/// A file larger than this is none of ours: a context of a million tokens in a large model.
const FILE_BYTES_MAX: u64 = 64 << 30;
/// Notes of models' digests; the oldest go first.
const NOTES_MAX: usize = 64;
/// A file that was begun longer ago than this was left by an engine that died.
const PART_AGE_MAX: Duration = Duration::from_secs(3600);

/// A folder of states that fit one engine.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// What makes a state fit.
    mark: [u8; DIGEST_BYTES],
    /// **Bound** of all states' files together.
    bytes_max: u64,
}

impl Folder {
    /// The folder of the settings for a model whose sequences have so many cells; `None`: there is none, or, with a line in
    /// the log, it can't be used.
    pub fn of(config: &EngineConfig, model: &Description, n_ctx_seq: u32) -> Option<Self> {
        let dir = config.prefix_store.as_deref()?;
        let shape = format!("{} {}", config.state_shape(n_ctx_seq), model.cpu);
        let folder = Self::open(dir, config, &model.build, &shape);
        folder.map_err(|error| tracing::warn!("prefixes are not kept in {}: {error}", dir.display())).ok()
    }

    /// Opens the folder for a model and the shape of its contexts, and makes it if it is missing. Reads all of the model's
    /// files, once: their digests are remembered in the folder. Errors: the folder or the model can't be used.
    fn open(dir: &Path, config: &EngineConfig, build: &str, shape: &str) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut hasher = Sha256::new();
        for part in ["1", env!("CARGO_PKG_VERSION"), build, shape] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        if let ModelSource::Gguf(path) = &config.source {
            let parts = ModelFile::open(path).map_err(io::Error::other)?.paths();
            hasher.update((parts.len() as u64).to_le_bytes());
            for part in parts {
                hasher.update(digest(dir, &part)?);
            }
        }
        for lora in &config.lora {
            hasher.update(digest(dir, &lora.path)?);
            hasher.update(lora.scale.to_bits().to_le_bytes());
        }
        let folder = Self { dir: dir.to_owned(), mark: hasher.finalize().into(), bytes_max: config.prefix_store_bytes };
        folder.tidy();
        folder.make_room(0, None);
        Ok(folder)
    }

    /// Removes what is of no use to anybody: states that are none, files that were never finished, notes of long ago.
    fn tidy(&self) {
        let is_state = |path: &Path| {
            let mut head = [0; MAGIC.len()];
            File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == *MAGIC
        };
        let is_old = |time: SystemTime| time.elapsed().is_ok_and(|age| age > PART_AGE_MAX);
        self.files("prefix").iter().filter(|file| !is_state(&file.path)).for_each(Kept::remove);
        self.files("part").iter().filter(|file| is_old(file.used)).for_each(Kept::remove);
        let mut notes = self.files("sha256");
        notes.truncate(notes.len().saturating_sub(NOTES_MAX));
        notes.iter().for_each(Kept::remove);
    }

    /// Removes states until there is room for `n` more bytes; `but` is about to be written anew.
    fn make_room(&self, n: u64, but: Option<&Path>) {
        let mut files = self.files("prefix");
        files.retain(|file| Some(file.path.as_path()) != but);
        let mut sum: u64 = files.iter().map(|file| file.n_bytes).sum();
        for file in files {
            if sum.saturating_add(n) <= self.bytes_max {
                return;
            }
            sum -= file.n_bytes;
            file.remove();
        }
    }

    /// Ours of this kind, the one that was not used for the longest time first. A folder that can't be listed has none.
    fn files(&self, kind: &str) -> Vec<Kept> {
        let is_ours = |path: &Path| {
            let stem = path.file_name().and_then(|name| name.to_str()?.split('.').next());
            let is_name =
                stem.is_some_and(|stem| stem.len() == 32 && stem.bytes().all(|byte| byte.is_ascii_hexdigit()));
            is_name && path.extension().is_some_and(|extension| extension == kind)
        };
        let kept = |entry: io::Result<std::fs::DirEntry>| {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some(Kept { path: entry.path(), n_bytes: metadata.len(), used: metadata.modified().ok()? })
        };
        let mut files: Vec<Kept> = std::fs::read_dir(&self.dir).into_iter().flatten().filter_map(kept).collect();
        files.retain(|file| is_ours(&file.path));
        files.sort_by_key(|file| file.used);
        files
    }

    fn path(&self, tokens: &[Token]) -> PathBuf {
        let mut hasher = Sha256::new_with_prefix(self.mark);
        tokens.iter().for_each(|token| hasher.update(token.to_le_bytes()));
        self.dir.join(format!("{}.prefix", hex(&hasher.finalize()[..16])))
    }

    /// The state of these tokens; `None` when there is none. Errors: there is a file and it can't be used.
    pub fn load(&self, tokens: &[Token]) -> io::Result<Option<Vec<u8>>> {
        let path = self.path(tokens);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let head = self.head(tokens);
        let n_bytes = file.metadata()?.len();
        if n_bytes > FILE_BYTES_MAX || n_bytes < (head.len() + DIGEST_BYTES) as u64 {
            return Err(invalid("it is not as long as it should be"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(n_bytes).map_err(|_| invalid("it is too large"))?);
        file.read_to_end(&mut bytes)?;
        let Some(at) = bytes.len().checked_sub(DIGEST_BYTES).filter(|at| *at >= head.len()) else {
            return Err(invalid("it became shorter while it was read"));
        };
        if Sha256::digest(&bytes[..at])[..] != bytes[at..] {
            return Err(invalid("its digest is not that of its content"));
        }
        if !bytes.starts_with(&head) {
            return Err(invalid("it holds another prefix than its name says"));
        }
        bytes.truncate(at);
        // It is in use. A folder that can't be written has no room to make either.
        let _ = File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(bytes.split_off(head.len())))
    }

    /// Keeps the state of these tokens, in the place of others if need be. Errors: it is larger than the folder may be, or
    /// can't be written.
    pub fn save(&self, tokens: &[Token], state: &[u8]) -> io::Result<()> {
        let path = self.path(tokens);
        let n_bytes = (self.head(tokens).len() + state.len() + DIGEST_BYTES) as u64;
        if n_bytes > self.bytes_max {
            let most = self.bytes_max;
            return Err(io::Error::other(format!("it takes {n_bytes} bytes, and the folder may have {most}")));
        }
        self.make_room(n_bytes, Some(&path));
        // Two engines may write the same one at once.
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let written = self.write(&part, tokens, state).and_then(|()| std::fs::rename(&part, &path));
        if written.is_err() {
            let _ = std::fs::remove_file(&part); // it may never have been there
        }
        written
    }

    fn write(&self, path: &Path, tokens: &[Token], state: &[u8]) -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        // Whoever may read it may read the prefix.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        let head = self.head(tokens);
        let digest = Sha256::new_with_prefix(&head).chain_update(state).finalize();
        for part in [&head, state, &digest[..]] {
            file.write_all(part)?;
        }
        file.sync_all()
    }

    /// What a file begins with.
    fn head(&self, tokens: &[Token]) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend(self.mark);
        head.extend((tokens.len() as u64).to_le_bytes());
        head.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        head
    }
}

/// A file of the folder.
struct Kept {
    path: PathBuf,
    n_bytes: u64,
    used: SystemTime,
}

impl Kept {
    fn remove(&self) {
        match std::fs::remove_file(&self.path) {
            Ok(()) => tracing::info!("{} made room in the folder of prefixes", self.path.display()),
            Err(error) => tracing::warn!("{} can't be removed: {error}", self.path.display()),
        }
    }
}

/// SHA-256 of a file in hex, remembered in `dir` for as long as the file lies there unchanged: a large model takes longer to
/// read than to load.
fn digest(dir: &Path, path: &Path) -> io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    let mut hasher = Sha256::new_with_prefix(path.canonicalize()?.as_os_str().as_encoded_bytes());
    hasher.update(Mark::of(&metadata).lasting());
    let note = dir.join(format!("{}.sha256", hex(&hasher.finalize()[..16])));
    let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(known) = std::fs::read_to_string(&note).ok().filter(is_digest) {
        return Ok(known);
    }
    let digest = lock::sha256(path, |_| {})?;
    let part = note.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&part, &digest)?;
    std::fs::rename(&part, &note)?;
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::config::ScriptedConfig;
    use crate::engine::config::tests::header;

    fn config() -> EngineConfig {
        EngineConfig::new(ModelSource::Scripted(ScriptedConfig::default()))
    }

    fn only_file(dir: &Path) -> PathBuf {
        let files: Vec<PathBuf> = std::fs::read_dir(dir).expect("a folder").flatten().map(|file| file.path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files.into_iter().next().expect("one")
    }

    #[test]
    fn a_state_comes_back_for_the_same_tokens_build_and_shape_only() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::open(dir.path(), &config(), "b1", "s1").expect("a folder");
        assert_eq!(folder.load(&[1, 2]).expect("nothing"), None);
        folder.save(&[1, 2], b"state").expect("written");
        assert_eq!(folder.load(&[1, 2]).expect("a state").as_deref(), Some(&b"state"[..]));
        assert_eq!(folder.load(&[1, 3]).expect("nothing"), None);
        for (build, shape) in [("b2", "s1"), ("b1", "s2")] {
            let other = Folder::open(dir.path(), &config(), build, shape).expect("a folder");
            assert_eq!(other.load(&[1, 2]).expect("nothing"), None);
        }
    }

    #[test]
    fn the_least_recently_used_make_room_and_what_is_none_goes() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let dir = dir.path();
        let small = |n: u64| EngineConfig { prefix_store_bytes: n, ..config() };
        let open = |build: &str, n: u64| Folder::open(dir, &small(n), build, "s").expect("a folder");
        // As long ago as it says.
        let used = |folder: &Folder, tokens: &[Token], seconds: u64| {
            let file = File::options().write(true).open(folder.path(tokens)).expect("a file");
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).expect("a time");
        };
        let (old, folder) = (open("old build", 4000), open("build", 4000));
        old.save(&[1], &[0; 1000]).expect("room");
        used(&old, &[1], 500);
        for (token, age) in [(1, 400), (2, 300)] {
            folder.save(&[token], &[0; 1000]).expect("room");
            used(&folder, &[token], age);
        }
        assert!(folder.load(&[1]).expect("good").is_some(), "in use from now on");
        folder.save(&[3], &[0; 1000]).expect("room is made");
        used(&folder, &[3], 200);
        assert_eq!(old.load(&[1]).expect("nothing"), None, "of a build that is no more");
        folder.save(&[4], &[0; 1000]).expect("room is made");
        let there =
            |folder: &Folder| (1..5).filter(|n| folder.load(&[*n]).expect("good").is_some()).collect::<Vec<_>>();
        assert_eq!(there(&folder), [1, 3, 4], "the second was used the longest ago");
        // Written anew in its own place, it takes no other's.
        folder.save(&[4], &[1; 1000]).expect("room");
        assert_eq!(there(&folder), [1, 3, 4]);
        let error = folder.save(&[5], &[0; 4000]).expect_err("more than all");
        assert!(error.to_string().contains("the folder may have 4000"), "{error}");
        assert_eq!(there(&folder), [1, 3, 4], "and nothing goes for it");

        let others = ["notes.txt", "0123.prefix"];
        let rubbish = ["a".repeat(32) + ".prefix", "b".repeat(32) + ".77.part"];
        for name in others.iter().copied().chain(rubbish.iter().map(String::as_str)) {
            std::fs::write(dir.join(name), b"something else").expect("written");
        }
        let part = File::options().write(true).open(dir.join(&rubbish[1])).expect("a file");
        part.set_modified(SystemTime::now() - 2 * PART_AGE_MAX).expect("a time");
        for token in [1, 3] {
            used(&folder, &[token], 100);
        }
        let folder = open("build", 1500);
        assert_eq!(there(&folder), [4], "a smaller bound holds from the start on");
        assert!(
            others.iter().all(|name| dir.join(name).exists()) && !rubbish.iter().any(|name| dir.join(name).exists())
        );
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::open(dir.path(), &config(), "b", "s").expect("a folder");
        folder.save(&[7; 20], &[9; 100]).expect("written");
        let path = only_file(dir.path());
        let good = std::fs::read(&path).expect("a file");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).expect("written");
            assert!(folder.load(&[7; 20]).is_err(), "a changed byte {at}");
            std::fs::write(&path, &good[..at]).expect("written");
            assert!(folder.load(&[7; 20]).is_err(), "cut at {at}");
        }
        std::fs::write(&path, &good).expect("written");
        assert!(folder.load(&[7; 20]).expect("good again").is_some());
    }

    #[test]
    fn a_changed_model_is_another_model() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let model = dir.path().join("m.gguf");
        let digest_of = |text: &str| {
            std::fs::write(&model, text).expect("written");
            digest(dir.path(), &model).expect("a digest")
        };
        let one = digest_of("one");
        assert_eq!(digest(dir.path(), &model).expect("remembered"), one);
        assert_ne!(digest_of("three"), one);
    }

    #[test]
    #[cfg(unix)]
    fn a_change_that_hides_behind_an_old_time_is_noticed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let model = dir.path().join("m.gguf");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let digest_of = |text: &str| {
            std::fs::write(&model, text).expect("written");
            File::options().write(true).open(&model).and_then(|file| file.set_modified(time)).expect("a time");
            digest(dir.path(), &model).expect("a digest")
        };
        let one = digest_of("one");
        // More than a tick of the clock that inodes are stamped by.
        std::thread::sleep(Duration::from_millis(30));
        assert_ne!(digest_of("two"), one);
    }

    #[test]
    fn every_part_of_a_split_model_counts() {
        let (store, models) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let part = |n: u32| models.path().join(format!("m-{n:05}-of-00002.gguf"));
        let bytes = |n: u8| [header(2), vec![n]].concat();
        for n in [1, 2] {
            std::fs::write(part(n), bytes(0)).expect("written");
        }
        let config = EngineConfig::new(ModelSource::Gguf(part(1)));
        let mark = || Folder::open(store.path(), &config, "b", "s").expect("a folder").mark;
        let mut marks = vec![mark()];
        assert_eq!(mark(), marks[0]);
        for n in [1, 2] {
            // Another file, so that no clock's tick hides the change.
            let fresh = models.path().join("fresh");
            std::fs::write(&fresh, bytes(n as u8)).expect("written");
            std::fs::rename(&fresh, part(n)).expect("in its place");
            let mark = mark();
            assert!(!marks.contains(&mark), "part {n}");
            marks.push(mark);
        }
    }
}
