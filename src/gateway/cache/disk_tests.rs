//! Answers on disk: what outlives a restart, and what must not.

use super::*;
use crate::chat::{Delta, Finish};
use crate::engine::{Done, Event, Timings};
use std::path::Path;

const SECRET: [u8; 32] = [9; 32];
const WORDS: &str = "the words of an answer that no file may show";

fn config(change: impl FnOnce(&mut CacheConfig)) -> CacheConfig {
    let mut config = CacheConfig { enabled: true, persist: true, ..Default::default() };
    change(&mut config);
    config
}

fn owners(of: &[Owner]) -> HashSet<Owner> {
    of.iter().copied().collect()
}

/// A server's life with this folder.
fn open(dir: &Path, config: CacheConfig, of: &[Owner]) -> Arc<Cache> {
    let cache = Cache::new(config);
    cache.keep_on_disk(dir.to_owned(), SECRET, owners(of)).expect("a writable folder");
    cache
}

const ADA: Owner = Owner::Key(1);
const EVE: Owner = Owner::Key(2);

fn key(owner: Owner, n: u32) -> Key {
    let (_, partition) = owner.parts();
    let tenant = Tenant { owner, partition, team: None, namespace: None, border: [0; 32] };
    remote(&tenant, "u", "/", &n.to_le_bytes())
}

async fn make(cache: &Arc<Cache>, key: Key, text: &str) {
    let Entered::Miss(Some(mut recorder)) = cache.enter(key, &CacheAsk::default()).await else {
        unreachable!("nothing is there")
    };
    let delta = Delta { content: text.into(), n_tokens: 1, ..Default::default() };
    recorder.observe(0, &Event::Delta(delta), 1);
    let done = Done { finish: Finish::EndOfTurn, usage: Default::default(), timings: Timings::default() };
    assert!(recorder.observe(0, &Event::Done(done), 1));
    recorder.keep(vec![3], "m", "fp");
}

/// A folder that a server with these answers of Ada's, by number, left behind.
async fn left_by(config: CacheConfig, answers: &[(u32, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), config, &[ADA]);
    for (n, text) in answers {
        make(&cache, key(ADA, *n), text).await;
    }
    cache.close().await;
    dir
}

async fn found(cache: &Arc<Cache>, key: Key) -> Option<String> {
    match cache.enter(key, &CacheAsk::default()).await {
        Entered::Hit(entry) => match &entry.events[0].1 {
            Event::Delta(delta) => Some(delta.content.clone()),
            _ => None,
        },
        Entered::Miss(_) => None,
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let below = |dir: &Path| std::fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = below(dir).flat_map(|folder| below(&folder).collect::<Vec<_>>()).collect();
    files.sort();
    files
}

fn n_bytes(dir: &Path) -> u64 {
    files(dir).iter().map(|path| path.metadata().expect("a file").len()).sum()
}

#[tokio::test]
async fn an_answer_outlives_its_server_within_its_tenant_and_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, of) = (dir.path(), [ADA, EVE]);
    let cache = open(dir, config(|_| {}), &of);
    make(&cache, key(ADA, 1), WORDS).await;
    cache.close().await;
    assert_eq!(files(dir).len(), 1);
    let path = &files(dir)[0];
    let bytes = std::fs::read(path).unwrap();
    assert!(!bytes.windows(9).any(|part| WORDS.as_bytes().windows(9).any(|words| words == part)));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    drop(cache);
    let cache = open(dir, config(|_| {}), &of);
    assert_eq!(found(&cache, key(EVE, 1)).await, None);
    assert_eq!(found(&cache, key(ADA, 2)).await, None);
    assert_eq!(found(&cache, key(ADA, 1)).await.as_deref(), Some(WORDS));
    assert!(cache.n_bytes() > 0, "it is in memory again");
    // Under another secret the same folder says nothing.
    let other = Cache::new(config(|_| {}));
    other.keep_on_disk(dir.to_owned(), [8; 32], owners(&of)).unwrap();
    assert_eq!(found(&other, key(ADA, 1)).await, None);
}

#[tokio::test]
async fn what_is_damaged_is_a_miss_and_goes() {
    let dir = left_by(config(|_| {}), &[(1, WORDS)]).await;
    let dir = dir.path();
    let path = files(dir).remove(0);
    let whole = std::fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..whole.len())
        .step_by(7)
        .map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        })
        .collect();
    damaged.extend([Vec::new(), whole[..whole.len() - 1].to_vec(), [&whole[..], &[0]].concat()]);
    for (n, bytes) in damaged.into_iter().enumerate() {
        let place = path.clone();
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, bytes).unwrap();
        let cache = open(dir, config(|_| {}), &[ADA]);
        assert_eq!(found(&cache, key(ADA, 1)).await, None, "{n}");
        cache.close().await;
        assert!(files(dir).is_empty(), "{n}");
        // It can be made again at once.
        if n == 0 {
            make(&cache, key(ADA, 1), "anew").await;
            assert_eq!(found(&cache, key(ADA, 1)).await.as_deref(), Some("anew"));
            cache.close().await;
        }
        drop(cache);
    }
    // Whole, under the name of another question: it doesn't open.
    let cache = open(dir, config(|_| {}), &[ADA]);
    make(&cache, key(ADA, 2), WORDS).await;
    cache.close().await;
    let two = files(dir).remove(0);
    std::fs::write(&two, &whole).unwrap();
    drop(cache);
    let cache = open(dir, config(|_| {}), &[ADA]);
    assert_eq!(found(&cache, key(ADA, 2)).await, None);
}

#[tokio::test]
async fn bytes_are_bounded_and_the_least_used_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let small = || config(|config| config.bytes_max = 64 << 10);
    let cache = open(dir, small(), &[ADA]);
    let text = "x".repeat(2500);
    for n in 0..40 {
        make(&cache, key(ADA, n), &text).await;
        cache.close().await;
        // The next one is younger by a millisecond at least.
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(n_bytes(dir) <= 64 << 10 && cache.disk_bytes().unwrap() <= 64 << 10);
        assert!(found(&cache, key(ADA, 0)).await.is_some(), "in use");
    }
    assert_eq!(files(dir).len(), 16, "counted in blocks");
    drop(cache);
    // A smaller bound holds from the start on.
    let cache = open(dir, config(|config| config.bytes_max = 32 << 10), &[ADA]);
    cache.close().await;
    assert!(n_bytes(dir) <= 32 << 10 && files(dir).len() == 8);
    let mut there = Vec::new();
    for n in 0..40 {
        there.extend(found(&cache, key(ADA, n)).await.map(|_| n));
    }
    assert_eq!(there, (32..40).collect::<Vec<_>>(), "the newest");
}

#[tokio::test]
async fn one_larger_than_the_bound_goes_alone() {
    let large = "x".repeat(40 << 10);
    let dir = left_by(config(|_| {}), &[(1, WORDS), (2, &large), (3, WORDS)]).await;
    let dir = dir.path();
    let cache = open(dir, config(|config| config.bytes_max = 32 << 10), &[ADA]);
    cache.close().await;
    assert_eq!((files(dir).len(), cache.disk_bytes()), (2, Some(8 << 10)));
    for (n, text) in [(1, Some(WORDS)), (2, None), (3, Some(WORDS))] {
        assert_eq!(found(&cache, key(ADA, n)).await.as_deref(), text, "{n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_erased_does_not_come_back_from_a_file_that_is_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), config(|_| {}), &[ADA]);
    for n in 0..200 {
        make(&cache, key(ADA, n), WORDS).await;
        cache.close().await;
        cache.leave_memory();
        let (readers, eraser) = (Arc::clone(&cache), Arc::clone(&cache));
        let reading = tokio::spawn(async move {
            for _ in 0..20 {
                found(&readers, key(ADA, n)).await;
            }
        });
        let erasing = tokio::spawn(async move { eraser.forget_of(owners(&[ADA])).await });
        erasing.await.unwrap();
        assert_eq!(found(&cache, key(ADA, n)).await, None, "{n}");
        reading.await.unwrap();
        assert_eq!((found(&cache, key(ADA, n)).await, cache.n_bytes()), (None, 0), "{n}");
    }
}

#[tokio::test]
async fn a_disk_that_stands_still_does_not_hold_up_the_end() {
    let dir = left_by(config(|_| {}), &[(1, WORDS)]).await;
    let (dir, path) = (dir.path(), files(dir.path()).remove(0));
    let cache = open(dir, config(|config| config.bytes_max = 1 << 30), &[ADA]);
    cache.flush().await;
    // To open it is to wait for a reader.
    let pipe = path.with_extension("part");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for n in 1..400 {
        make(&cache, key(ADA, n), WORDS).await;
    }
    tokio::time::timeout(Duration::from_secs(60), cache.close()).await.expect("it ends");
    std::fs::File::open(&pipe).unwrap();
}

#[tokio::test]
async fn time_is_up_whatever_is_on_disk() {
    let dir = left_by(config(|_| {}), &[(1, WORDS)]).await;
    let dir = dir.path();
    // The operator's time holds for what was kept before it was said.
    let brief = |config: &mut CacheConfig| config.ttl = Duration::from_millis(1);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let cache = open(dir, config(brief), &[ADA]);
    assert_eq!(found(&cache, key(ADA, 1)).await, None);
    cache.close().await;
    assert!(files(dir).is_empty());
}

#[tokio::test]
async fn what_was_deleted_or_forgotten_is_not_there_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let team = Owner::team("red");
    let all = [ADA, EVE, team, Owner::Fixed(0)];
    let cache = open(dir, config(|_| {}), &all);
    for owner in all {
        make(&cache, key(owner, 1), WORDS).await;
    }
    cache.close().await;
    assert_eq!(files(dir).len(), 4);
    assert_eq!(cache.forget_others(owners(&[ADA, team])).await, 1);
    assert_eq!(cache.forget_of(owners(&[team])).await, 1);
    assert_eq!((files(dir).len(), found(&cache, key(EVE, 1)).await), (2, None));
    // What was being made meanwhile is not kept.
    let Entered::Miss(Some(recorder)) = cache.enter(key(EVE, 2), &CacheAsk::default()).await else {
        unreachable!("nothing is there")
    };
    cache.forget_others(owners(&[ADA])).await;
    recorder.keep(vec![3], "m", "fp");
    cache.close().await;
    assert_eq!(files(dir).len(), 2);
    // What others were making meanwhile is.
    let Entered::Miss(Some(recorder)) = cache.enter(key(ADA, 2), &CacheAsk::default()).await else {
        unreachable!("nothing is there")
    };
    cache.forget_others(owners(&[ADA])).await;
    cache.forget_of(owners(&[EVE])).await;
    recorder.keep(vec![3], "m", "fp");
    cache.close().await;
    assert_eq!(files(dir).len(), 3);
    drop(cache);
    // A key that was deleted with no server running: static keys' stay until their time is up.
    let cache = open(dir, config(|_| {}), &[EVE]);
    cache.close().await;
    assert_eq!((files(dir).len(), found(&cache, key(ADA, 1)).await), (1, None));
    assert_eq!(found(&cache, key(Owner::Fixed(0), 1)).await.as_deref(), Some(WORDS));
    assert_eq!((cache.flush().await, files(dir).len()), (1, 0));
    drop(cache);
    assert_eq!(found(&open(dir, config(|_| {}), &all), key(Owner::Fixed(0), 1)).await, None);
}
