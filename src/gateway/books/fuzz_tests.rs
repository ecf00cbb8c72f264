//! Books whose files were damaged, fuzzed (F15): refused, or found out by what `hearth db check` and `hearth audit verify` ask,
//! or read as they were written.
//!
//! An input is a list of damages, so that a few bytes of it reach any byte of a file:
//!
//! ```text
//! closed                    the books as they are after a stop, or `killed`: with their log
//! main flip 4711 3          a bit; a place that is no number is found by its hash
//! main put 18 ffff          bytes
//! main fill 4096 100 0      so many of one byte
//! wal cut 20000             the rest is gone
//! main swap 2 5             pages, or blocks where the file has none
//! wal copy 1 3
//! wal none                  no such file; `own`: the killed books'; `foreign`: other books'
//! ```

use super::{Books, BooksConfig};
use crate::fuzz::{Shape, Target, fuzz, outcome};
use crate::gateway::spec::KeySpec;
use crate::gateway::store::tests::row;
use crate::gateway::store::{Durability, OnFailure};
use crate::telemetry::Metrics;
use rusqlite::Connection;
use rusqlite::types::Value;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

const WORDS: &str = "closed¦killed¦main¦wal¦key¦flip¦put¦fill¦cut¦grow¦swap¦copy¦none¦own¦foreign¦4096¦512¦16384¦32¦24¦\
    100¦4120¦here¦there¦elsewhere¦00000000¦ffffffff¦00000001¦0a050020¦0d000000¦7fffffffffffffff";
/// A file that is let grow is not longer than this.
const BYTES_MAX: usize = 1 << 20;
/// Links that opening the books may add.
const ADDED_MAX: usize = 2;

fn config(dir: &Path) -> BooksConfig {
    BooksConfig { durability: Durability::Process, on_failure: OnFailure::Reject, ..BooksConfig::new(dir.to_owned()) }
}

fn open(dir: &Path) -> Result<Arc<Books>, super::BooksError> {
    Books::open(config(dir), &Arc::new(Metrics::new()))
}

/// Every value of every row of what the audit chain answers for: requests, links.
type Written = (Vec<Vec<Value>>, Vec<Vec<Value>>);

fn table(conn: &Connection, table: &str) -> rusqlite::Result<Vec<Vec<Value>>> {
    let mut statement = conn.prepare(&format!("SELECT * FROM {table} ORDER BY seq"))?;
    let n = statement.column_count();
    statement.query_map([], |row| (0..n).map(|at| row.get(at)).collect())?.collect()
}

fn written(books: &Books) -> Written {
    let read = |name: &'static str| books.store().read_now(|conn| Ok(table(conn, name)?));
    (read("request").expect("rows, as the check said"), read("audit").expect("links, as the check said"))
}

/// The files of one state of the books.
#[derive(Clone, Default)]
struct Files {
    main: Option<Vec<u8>>,
    wal: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

const NAMES: [&str; 3] = ["hearth.db", "hearth.db-wal", super::files::AUDIT];

impl Files {
    fn read(dir: &Path) -> Self {
        let [main, wal, key] = NAMES.map(|name| std::fs::read(dir.join(name)).ok());
        Self { main, wal, key }
    }

    fn write(&self, dir: &Path) {
        for (name, bytes) in NAMES.into_iter().zip([&self.main, &self.wal, &self.key]) {
            if let Some(bytes) = bytes {
                std::fs::write(dir.join(name), bytes).expect("a writable folder");
            }
        }
    }
}

struct House {
    closed: Files,
    killed: Files,
    foreign: Files,
    pepper: Vec<u8>,
    master: Vec<u8>,
    written: Written,
}

async fn fill(books: &Arc<Books>, ids: std::ops::Range<u64>) {
    for n in ids {
        books.store().settle(row(n)).await.expect("settled");
        if n.is_multiple_of(10) {
            let spec = KeySpec { alias: Some(format!("key {n}")), ..KeySpec::default() };
            books.generate_key("admin", spec).await.expect("made");
        }
    }
}

impl House {
    async fn build() -> Self {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let books = open(dirs[0].path()).expect("fresh books");
        fill(&books, 0..20).await;
        books.close().await;
        drop(books);
        // The second life is the one that is killed, then closed.
        let books = open(dirs[0].path()).expect("they open again");
        fill(&books, 20..40).await;
        books.store().flush().await;
        let killed = Files::read(dirs[0].path());
        let written = written(&books);
        books.close().await;
        drop(books);
        let closed = Files::read(dirs[0].path());
        let other = open(dirs[1].path()).expect("fresh books");
        fill(&other, 0..40).await;
        let foreign = Files::read(dirs[1].path());
        other.close().await;
        assert!(killed.wal.as_ref().is_some_and(|wal| wal.len() > 50_000) && closed.wal.is_none());
        let secret = |name: &str| std::fs::read(dirs[0].path().join(name)).expect("a secret");
        let (pepper, master) = (secret(super::files::PEPPER), secret(super::MASTER));
        Self { closed, killed, foreign, pepper, master, written }
    }

    /// The damaged files, and whether they may have less than was written.
    fn damaged(&self, script: &str) -> (Files, bool) {
        let is_killed = script.lines().next() == Some("killed");
        let (mut files, mut may_lack) = (if is_killed { self.killed.clone() } else { self.closed.clone() }, is_killed);
        for line in script.lines().take(64) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, what, ..] = words[..] else { continue };
            let (file, own, foreign) = match name {
                "main" => (&mut files.main, &self.killed.main, &self.foreign.main),
                "wal" => (&mut files.wal, &self.killed.wal, &self.foreign.wal),
                "key" => (&mut files.key, &self.killed.key, &self.foreign.key),
                _ => continue,
            };
            // Each file alone is what it was once.
            may_lack |= name == "wal" || matches!(what, "own" | "none");
            match what {
                "none" => *file = None,
                "own" => file.clone_from(own),
                "foreign" => file.clone_from(foreign),
                _ => damage(file.as_mut(), what, &words[2..]),
            }
        }
        (files, may_lack)
    }
}

/// A place or a number below `n`.
fn number(word: &str, n: usize) -> usize {
    let number = word.parse().unwrap_or_else(|_| {
        let mut hasher = DefaultHasher::new();
        word.hash(&mut hasher);
        hasher.finish()
    });
    usize::try_from(number % n.max(1) as u64).expect("below a usize")
}

fn damage(bytes: Option<&mut Vec<u8>>, what: &str, words: &[&str]) {
    let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else { return };
    let n = bytes.len();
    let word = |at: usize| words.get(at).copied().unwrap_or("0");
    let at = number(word(0), n);
    // Of the file, where it has pages; a log has a head before each.
    let page = 4096.min(n);
    match what {
        "flip" => bytes[at] ^= 1 << number(word(1), 8),
        "put" => {
            let digits = word(1).as_bytes();
            for (to, pair) in bytes[at..].iter_mut().zip(digits.chunks_exact(2)) {
                *to = std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()).unwrap_or(0);
            }
        }
        "fill" => {
            let end = (at + number(word(1), n)).min(n);
            bytes[at..end].fill(u8::try_from(number(word(2), 256)).expect("below 256"));
        }
        "cut" => bytes.truncate(at),
        "grow" => bytes.resize((n + number(word(0), BYTES_MAX)).min(BYTES_MAX), 0),
        "swap" | "copy" => {
            let (from, to) = (number(word(0), n / page) * page, number(word(1), n / page) * page);
            let (first, second) = (bytes[from..from + page].to_vec(), bytes[to..to + page].to_vec());
            bytes[to..to + page].copy_from_slice(&first);
            if what == "swap" {
                bytes[from..from + page].copy_from_slice(&second);
            }
        }
        _ => {}
    }
}

/// What an administrator is told of the books in `dir`, or that they are said to be good, with what they hold.
async fn looked_at(dir: &Path) -> Result<Written, String> {
    let books = open(dir).map_err(|error| format!("refused {error}"))?;
    let check = books.store().check().await;
    let verified = books.store().verify(1).await;
    let said = match (check, verified) {
        (Ok(faults), Ok(verified)) if faults.is_empty() => verified.fault.map(|fault| format!("link {}", fault.reason)),
        (Ok(faults), _) if !faults.is_empty() => Some(format!("damage {}", faults[0])),
        (Err(error), _) | (_, Err(error)) => Some(format!("unread {error}")),
        (Ok(_), Ok(_)) => unreachable!("without faults, which was seen"),
    };
    let found = match said {
        Some(said) => Err(said),
        None => Ok(written(&books)),
    };
    books.close().await;
    found
}

fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "closed\n",
        "killed\n",
        "closed\nmain flip 4711 3\n",
        "closed\nmain flip here 1\nmain flip there 2\n",
        "closed\nmain cut 20000\n",
        "closed\nmain cut 0\n",
        "closed\nmain swap 2 5\n",
        "closed\nmain copy 3 4\n",
        "closed\nmain put 18 ffff\nmain put 24 00000001\n",
        "closed\nmain fill 4096 100 0\n",
        "closed\nwal foreign\n",
        "closed\nwal own\n",
        "closed\nmain foreign\n",
        "closed\nkey none\n",
        "closed\nkey flip here 1\n",
        "killed\nwal none\n",
        "killed\nwal foreign\n",
        "killed\nwal cut here\n",
        "killed\nwal flip here 1\n",
        "killed\nwal swap 1 3\n",
        "killed\nwal fill here 512 90\n",
        "killed\nmain flip here 0\n",
        "killed\nmain none\nwal own\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

#[test]
fn books() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let house = runtime.block_on(House::build());
    let words: Vec<&str> = WORDS.split('¦').collect();
    let target = Target { name: "books", seeds: seeds(), shape: Shape::Text, words: &words };
    fuzz(&target, |input| {
        let script = String::from_utf8_lossy(input);
        let (files, may_lack) = house.damaged(&script);
        // In memory where that can be: the books wait for the disk several times at each start.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder");
        files.write(dir.path());
        std::fs::write(dir.path().join(super::files::PEPPER), &house.pepper).expect("a writable folder");
        std::fs::write(dir.path().join(super::MASTER), &house.master).expect("a writable folder");
        let is_new = files.main.is_none();
        let found = runtime.block_on(async {
            let look = tokio::time::timeout(std::time::Duration::from_secs(60), looked_at(dir.path()));
            look.await.expect("it ends")
        });
        match found {
            Err(said) => outcome(&said),
            Ok((rows, links)) => {
                let (all_rows, all_links) = &house.written;
                if is_new && rows.is_empty() {
                    return 1;
                }
                assert!(all_rows.starts_with(&rows), "rows that were not written so, and nothing says it");
                assert!(may_lack || rows.len() == all_rows.len(), "{} rows, and nothing says it", rows.len());
                let n = links.iter().zip(all_links).take_while(|(found, written)| found == written).count();
                assert!(links.len() <= n + ADDED_MAX, "links that were not written so, and nothing says it");
                assert!(may_lack || n == all_links.len(), "{n} links, and nothing says it");
                2 + rows.len() as u64
            }
        }
    });
}
