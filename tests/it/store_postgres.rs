//! Rows that go on to PostgreSQL: a real server, killed and stopped under load. Skipped where it is not installed (`sh
//! .ci/setup.sh test` installs it).

use crate::support::chat_body;
use crate::support::cluster::Cluster;
use crate::support::ledger::{Finished, client, hearth, open, rows, serve_with};
use crate::support::served::Served;
use hearth::gateway::store::{GroupBy, LogFilter, links, spend};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// For a server that starts anew, or retries.
const PATIENCE: Duration = Duration::from_secs(90);

fn cluster() -> Option<Cluster> {
    let cluster = Cluster::start();
    if cluster.is_none() {
        eprintln!("skipped: there is no PostgreSQL here");
    }
    cluster
}

/// Clients that ask until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(served: &Served, key: &str, finished: &Finished) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let one = |n| client(served.url.clone(), key.to_owned(), n, Arc::clone(finished), Arc::clone(&stop));
        let clients = (0..6).map(|n| tokio::spawn(one(n))).collect();
        Self { stop, clients }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client does not panic");
        }
    }
}

async fn sleep(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        sleep(50).await;
    }
}

/// Waits until `db check` says that nothing is behind.
async fn until_all_arrived(dir: &Path) {
    until("all rows arrive", || hearth(dir, &["db", "check"]).is_ok_and(|text| text.contains(": 0 rows behind"))).await;
}

/// Waits until the server's rows go to the database: from then on its name there is taken.
async fn until_connected(served: &Served, key: &str) {
    let (client, started) = (reqwest::Client::new(), Instant::now());
    loop {
        let request = client.get(format!("{}/metrics", served.url)).bearer_auth(key);
        let page = request.send().await.expect("an answer").text().await.expect("a page");
        if page.lines().any(|line| line == "hearth_store_up 1") {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "never connected:\n{page}");
        sleep(50).await;
    }
}

/// Every row of the folder, as it is in the database.
async fn is_the_same(dir: &Path, cluster: &Cluster) -> usize {
    let books = open(dir).await;
    let mut local = rows(&books).await;
    local.sort_by(|a, b| a.id.cmp(&b.id));
    let line = |row: &hearth::gateway::store::RequestRow| {
        format!("{}|{}|{}|{}|{}|{}", row.id, row.t0, row.finish, row.in_tok, row.out_tok, row.cost_nusd)
    };
    let here: Vec<String> = local.iter().map(line).collect();
    let instance: String = books
        .store()
        .read(|conn| Ok(conn.query_row("SELECT instance FROM state", [], |row| row.get(0))?))
        .await
        .expect("a name");
    let there = cluster
        .query(&format!(
            "SELECT id, t0, finish, in_tok, out_tok, cost_nusd FROM hearth_request WHERE instance = '{instance}'
             ORDER BY id COLLATE \"C\""
        ))
        .expect("rows");
    let there: Vec<&str> = there.lines().collect();
    assert_eq!(there.len(), here.len());
    assert!(there == here, "rows differ");
    let sums = books.store().read(|conn| spend(conn, &LogFilter::default(), GroupBy::Key)).await.expect("sums");
    let n: i64 = sums.iter().map(|sum| sum.n).sum();
    let text = format!("SELECT sum(n), sum(out_tok) FROM hearth_usage_day WHERE instance = '{instance}'");
    let n_out: i64 = sums.iter().map(|sum| sum.out_tok).sum();
    assert_eq!(cluster.query(&text), Some(format!("{n}|{n_out}")));
    // What this very opening wrote has not gone anywhere yet.
    let chain = books.store().read(|conn| links(conn, 1, 10_000)).await.expect("links");
    let text = format!(
        "SELECT string_agg(mac, '' ORDER BY seq) FROM (SELECT * FROM hearth_audit WHERE instance = '{instance}'
         ORDER BY seq LIMIT 10000) a"
    );
    let there = cluster.query(&text).expect("links");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let here: String = chain.iter().map(|link| hex(&link.mac)).collect();
    assert!(!there.is_empty() && here.starts_with(&there), "the chain is another");
    books.close().await;
    here.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_arrives_once_whoever_is_killed_meanwhile() {
    let Some(mut cluster) = cluster() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let key = hearth(dir.path(), &["keys", "new", "--alias", "clients"]).expect("made with the server down");
    let finished = Finished::default();
    let url = cluster.url();
    let store = ["--store", url.as_str()];
    let served = serve_with(dir.path(), &store);
    let load = Load::start(&served, &key, &finished);
    until("rows arrive", || cluster.query("SELECT count(*) > 20 FROM hearth_request").as_deref() == Some("t")).await;
    // The database dies under load: nobody who asks notices.
    cluster.kill();
    let before = finished.lock().expect("a lock").len();
    until("the loss is told", || hearth(dir.path(), &["db", "check"]).is_ok_and(|text| text.contains("connect"))).await;
    until("answers go on", || finished.lock().expect("a lock").len() > before + 5).await;
    let said = hearth(dir.path(), &["db", "check"]).expect("the books are whole");
    assert!(said.starts_with("ok\n") && !said.contains(": 0 rows behind"), "{said}");
    assert_eq!(served.status("/readyz"), Some(200));
    cluster.up();
    // Then the server dies, while it sends what had waited.
    sleep(300).await;
    assert!(Command::new("kill").args(["-9", &served.pid().to_string()]).status().expect("kill runs").success());
    load.end().await;
    drop(served);
    let mut served = serve_with(dir.path(), &store);
    let load = Load::start(&served, &key, &finished);
    // Both, again and again.
    for _ in 0..3 {
        sleep(200).await;
        cluster.kill();
        sleep(200).await;
        cluster.up();
    }
    load.end().await;
    // Those whose client left in the middle are settled before it ends; what it could not send any more, the next one does.
    assert!(Command::new("kill").args(["-TERM", &served.pid().to_string()]).status().expect("kill runs").success());
    assert!(served.ended(PATIENCE), "the process ends by itself");
    let served = serve_with(dir.path(), &store);
    until_all_arrived(dir.path()).await;
    drop(served);
    let n = is_the_same(dir.path(), &cluster).await;
    let text = "SELECT count(*), count(DISTINCT (instance, seq)), count(DISTINCT id) FROM hearth_request";
    let counts = cluster.query(text).expect("counts");
    let counts: Vec<&str> = counts.split('|').collect();
    assert!(n > 0 && counts[0] == counts[1] && counts[0] == counts[2], "{counts:?}");
    assert!(finished.lock().expect("a lock").len() > 50);
    assert_eq!(cluster.query("SELECT alias FROM hearth_key").as_deref(), Some("clients"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_hearths_share_a_database_and_none_writes_as_another() {
    let Some(cluster) = cluster() else { return };
    let url = cluster.url();
    let store = ["--store", url.as_str()];
    let dirs = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
    let ask = async |served: &Served, key: &str, n: usize| {
        let client = reqwest::Client::new();
        for _ in 0..n {
            let body = chat_body("hello", json!({ "user": "an\u{0}n" }));
            let sent = client.post(format!("{}/v1/chat/completions", served.url)).bearer_auth(key).json(&body);
            assert_eq!(sent.send().await.expect("an answer").status(), 200);
        }
    };
    let mut keys = Vec::new();
    for dir in &dirs {
        keys.push(hearth(dir.path(), &["keys", "new"]).expect("a key"));
    }
    let one = serve_with(dirs[0].path(), &store);
    let two = serve_with(dirs[1].path(), &store);
    ask(&one, &keys[0], 3).await;
    ask(&two, &keys[1], 5).await;
    for dir in &dirs {
        until_all_arrived(dir.path()).await;
    }
    let counts = "SELECT string_agg(n::text, ',' ORDER BY n) FROM
                  (SELECT count(*) AS n FROM hearth_request GROUP BY instance) a";
    assert_eq!(cluster.query(counts).as_deref(), Some("3,5"));
    let users = cluster.query("SELECT DISTINCT end_user FROM hearth_request").expect("a name");
    assert_eq!(users, "an\u{fffd}n", "a NUL can't be kept there");
    // A copy of the first folder, as a backup has it.
    drop(one);
    let copy = tempfile::tempdir().expect("a folder");
    let copied = Command::new("cp").arg("-a").arg(dirs[0].path().join(".")).arg(copy.path()).status();
    assert!(copied.expect("cp runs").success());
    // It may not write beside the first …
    let one = serve_with(dirs[0].path(), &store);
    until_connected(&one, &keys[0]).await;
    until_all_arrived(dirs[0].path()).await;
    let other = serve_with(copy.path(), &store);
    let check = || hearth(copy.path(), &["db", "check"]).expect("the books are whole");
    until("the copy is refused", || check().contains("another hearth sends rows under this server's name")).await;
    // … and not after it either, once they have gone apart.
    ask(&one, &keys[0], 4).await;
    ask(&other, &keys[0], 9).await;
    until_all_arrived(dirs[0].path()).await;
    drop(one);
    until("the copy is refused", || check().contains("that are not its own")).await;
    assert_eq!(cluster.query(counts).as_deref(), Some("5,7"));
    drop(other);
    // A newer hearth has changed the tables.
    assert!(cluster.query("UPDATE hearth_schema SET version = 99").is_some());
    drop(two);
    let two = serve_with(dirs[1].path(), &store);
    ask(&two, &keys[1], 2).await;
    let check = || hearth(dirs[1].path(), &["db", "check"]).expect("the books are whole");
    until("it is refused", || check().contains("of version 99, and this hearth knows up to 1")).await;
    assert!(check().contains(": 2 rows behind"), "{}", check());
    assert!(cluster.query("UPDATE hearth_schema SET version = 1").is_some());
    until_all_arrived(dirs[1].path()).await;
    assert_eq!(cluster.query(counts).as_deref(), Some("7,7"));
    assert!(cluster.dir().join("log").exists());
}
