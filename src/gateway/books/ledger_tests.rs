//! The ledger over a real store: each request has one row, which says what it was and what it came to.

use super::*;
use crate::gateway::books::{Books, BooksConfig};
use crate::gateway::cache::CacheResult;
use crate::gateway::keys::{KeyRecord, TeamRecord};
use crate::gateway::spec::{AuditLevel, KeySpec, TeamSpec};
use crate::gateway::store::{Durability, LogFilter, OnFailure, StoreConfig, logs};
use crate::gateway::upstream::Class;
use crate::telemetry::Metrics;
use std::path::Path;

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A token costs a nano-USD, one out of the cache half as much, one of an answer seven: a cost tells its counts.
const PRICE: Price = Price { input: 1_000_000, cached_input: 500_000, output: 7_000_000 };

fn open(dir: &Path) -> Arc<Store> {
    let store = Store::open(StoreConfig {
        path: dir.join("hearth.db"),
        durability: Durability::Process,
        on_failure: OnFailure::Reject,
        chain_key: [1; 32],
        audit_key: dir.join("audit.key"),
        witness: None,
        observe: Box::new(|_| {}),
    });
    Arc::new(store.expect("it opens"))
}

struct Place {
    ledger: Arc<Ledger>,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new(refunds: bool) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        Self { ledger: Ledger::start(open(dir.path()), None, refunds), _dir: dir }
    }

    fn enter(&self, request_id: &str) -> Arc<Entry> {
        self.ledger.enter(EntryHead { request_id, principal: &Principal::default(), ip: None })
    }

    /// What is written now.
    async fn rows(&self) -> Vec<RequestRow> {
        let store = &self.ledger.store;
        store.flush().await;
        store.read(|conn| logs(conn, &LogFilter::default(), (100, 0))).await.expect("rows")
    }

    /// Settles the request and returns its row.
    async fn settled(&self, entry: Arc<Entry>) -> RequestRow {
        let id = entry.lock().row.id.clone();
        entry.settle().await.expect("it is written");
        drop(entry);
        let mut rows = self.rows().await;
        rows.retain(|row| row.id == id);
        assert_eq!(rows.len(), 1, "{id}");
        rows.remove(0)
    }
}

fn usage(prompt_tokens: u32, cached_tokens: u32, completion_tokens: u32, reasoning_tokens: u32) -> Usage {
    Usage { prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, ..Usage::default() }
}

fn counts(row: &RequestRow) -> (u64, u64, u64, u64, i64) {
    (row.in_tok, row.cached_tok, row.out_tok, row.reason_tok, row.cost_nusd)
}

#[tokio::test]
async fn a_row_says_who_asked_for_what_and_what_it_came_to() {
    let place = Place::new(true);
    let spec = KeySpec {
        team: Some("team".into()),
        user: Some("ada".into()),
        tags: vec!["red".into(), "blue".into()],
        budget_id: Some("own".into()),
        ..KeySpec::default()
    };
    let of_team = TeamSpec { budget_id: Some("shared".into()), ..TeamSpec::default() };
    let team = TeamRecord { id: "team".into(), spec: of_team, created: 0, blocked: false };
    let key = KeyRecord::new("key".into(), spec, Some(Arc::new(team)), 0, false);
    let principal = Principal::of(Arc::new(key));
    let before = unix_ms();
    let ip = Some([127, 0, 0, 1].into());
    let entry = place.ledger.enter(EntryHead { request_id: "req_1", principal: &principal, ip });
    assert!(format!("{entry:?}").starts_with("Entry { no: 0"));
    let trace = Trace::default();
    entry.at("/v1/chat/completions");
    entry.of_model(Some(&"é".repeat(300)), "m", PRICE);
    entry.of_end_user(&"ü".repeat(300));
    entry.follow(trace.clone());
    trace.cache(CacheResult::Miss);
    assert!(!entry.is_running());
    drop(entry.open().await.expect("sent"));
    assert!(entry.is_running());
    entry.queued(5);
    entry.first_token();
    let first = entry.lock().row.t_first;
    entry.first_token();
    entry.count(&usage(10, 4, 3, 1), UsageSource::Engine);
    assert_eq!(entry.cost(), 6 + 2 + 21);
    entry.end("stop");
    entry.end("length");
    entry.answered(200, None, true);
    let row = place.settled(entry).await;
    let after = unix_ms();
    assert!(before <= row.t0 && row.t0 <= row.t_first.expect("a first token") && row.t_end <= after);
    assert!(row.t_first == first && first <= Some(row.t_end));
    let expected = RequestRow {
        id: "req_1".into(),
        t0: row.t0,
        t_first: row.t_first,
        t_end: row.t_end,
        key_id: Some("key".into()),
        team_id: Some("team".into()),
        user_id: Some("ada".into()),
        end_user: Some("ü".repeat(256)),
        ip: Some("127.0.0.1".into()),
        endpoint: "/v1/chat/completions".into(),
        model_req: Some("é".repeat(256)),
        model: Some("m".into()),
        served_by: Some("local".into()),
        status: 200,
        finish: "stop".into(),
        stream: true,
        in_tok: 10,
        cached_tok: 4,
        out_tok: 3,
        reason_tok: 1,
        usage_source: "engine".into(),
        cost_nusd: 29,
        price: Some(PRICE),
        queue_ms: Some(5),
        cache: Some("miss".into()),
        tags: vec!["red".into(), "blue".into()],
        trace_id: Some(trace.context().trace.to_string()),
        budgets: vec!["own".into(), "shared".into()],
        ..RequestRow::default()
    };
    assert_eq!(row, expected);
}

#[tokio::test]
async fn who_answers_says_what_is_charged() {
    let place = Place::new(true);
    let made = |name: &str| {
        let entry = place.enter(name);
        entry.of_model(None, "m", PRICE);
        entry.count(&usage(10, 0, 0, 0), UsageSource::Engine);
        entry
    };
    let (cached, elsewhere, free) = (made("cached"), made("elsewhere"), made("free"));
    cached.of_cache();
    elsewhere.of_upstream("other");
    free.of_model(Some("x"), "m", Price::default());
    let said = |row: RequestRow| (row.served_by, row.price, row.cost_nusd, row.model_req);
    assert_eq!(said(place.settled(cached).await), (Some("cache".into()), None, 0, None));
    assert_eq!(said(place.settled(elsewhere).await), (Some("other".into()), Some(PRICE), 10, None));
    assert_eq!(said(place.settled(free).await), (Some("local".into()), None, 0, Some("x".into())));
}

/// (status, whether it streams, what was said of its end) and the (status, end) of its row.
#[tokio::test]
async fn every_way_to_end_has_its_word() {
    let place = Place::new(true);
    let settled = [
        ((0, false, ""), (499, "aborted")),
        ((199, false, ""), (199, "failed")),
        ((200, false, ""), (200, "ok")),
        ((200, true, ""), (200, "ok")),
        ((399, false, ""), (399, "ok")),
        ((400, false, ""), (400, "refused")),
        ((499, false, ""), (499, "refused")),
        ((500, false, ""), (500, "failed")),
        ((200, false, "length"), (200, "length")),
        ((500, false, "engine_crash"), (500, "engine_crash")),
        ((0, false, "revoked"), (499, "revoked")),
    ];
    // Those whose last holder lets go of them, and nobody waits for the row.
    let dropped = [
        ((0, false, ""), (499, "aborted")),
        ((0, false, "shutdown"), (499, "shutdown")),
        ((200, false, ""), (200, "ok")),
        ((200, true, ""), (200, "aborted")),
        ((200, true, "stop"), (200, "stop")),
        ((404, false, ""), (404, "refused")),
        ((503, false, ""), (503, "failed")),
    ];
    let ended = |name: &str, (status, stream, finish): (u16, bool, &str)| {
        let entry = place.enter(name);
        if !finish.is_empty() {
            entry.end(finish);
        }
        if status > 0 {
            entry.answered(status, None, stream);
        }
        entry
    };
    for (n, (how, _)) in settled.iter().enumerate() {
        ended(&format!("settled{n}"), *how).settle().await.expect("it is written");
    }
    for (n, (how, _)) in dropped.iter().enumerate() {
        drop(ended(&format!("dropped{n}"), *how));
    }
    let rows = place.rows().await;
    assert_eq!(rows.len(), settled.len() + dropped.len(), "each has one");
    for (kind, cases) in [("settled", &settled[..]), ("dropped", &dropped[..])] {
        for (n, (how, expected)) in cases.iter().enumerate() {
            let row = rows.iter().find(|row| row.id == format!("{kind}{n}")).expect("a row");
            assert_eq!((row.status, row.finish.as_str()), *expected, "{kind} {how:?}");
            assert_eq!(row.usage_source, "none", "nobody counted");
        }
    }
}

#[tokio::test]
async fn the_first_error_is_the_answers_and_a_later_one_the_streams() {
    let place = Place::new(true);
    let entry = place.enter("refused");
    entry.answered(429, Some("rate_limited"), false);
    entry.answered(500, Some("internal"), false);
    let row = place.settled(entry).await;
    assert_eq!((row.status, row.error_code.as_deref()), (500, Some("rate_limited")));
    let entry = place.enter("broken");
    entry.answered(200, None, true);
    entry.failed_with(Some("engine_crashed"));
    assert_eq!(place.settled(entry).await.error_code.as_deref(), Some("engine_crashed"));
}

#[tokio::test]
async fn a_request_has_one_row_and_what_was_none_has_none() {
    let place = Place::new(true);
    let entry = place.enter("once");
    entry.answered(200, None, false);
    entry.settle().await.expect("it is written");
    entry.answered(500, None, false);
    entry.settle().await.expect("it was");
    drop(entry);
    let none = place.enter("none");
    none.discard();
    none.settle().await.expect("there is nothing to write");
    drop(none);
    let rows = place.rows().await;
    assert_eq!((rows.len(), rows[0].id.as_str(), rows[0].status), (1, "once", 200));
    assert!(place.ledger.lock().is_empty(), "nobody is remembered");
}

#[tokio::test]
async fn an_answer_that_is_replaced_is_counted_and_charged_beside_the_next() {
    let place = Place::new(true);
    let entry = place.enter("req_1");
    entry.of_model(None, "m", PRICE);
    entry.count(&usage(100, 40, 7, 5), UsageSource::Engine);
    entry.end("stop");
    let first = entry.set_aside();
    assert_eq!((first.in_tok, first.cached_tok, first.out_tok, first.reason_tok), (100, 40, 7, 5));
    assert_eq!((first.nusd, entry.cost()), (60 + 20 + 49, 129));
    entry.count(&usage(10, 4, 3, 3), UsageSource::Upstream);
    assert_eq!(entry.cost(), 129 + 6 + 2 + 21);
    let second = entry.set_aside();
    assert_eq!((second.in_tok, second.cached_tok, second.out_tok, second.reason_tok, second.nusd), (10, 4, 3, 3, 29));
    // Nothing better came: the first is given after all, and counted anew.
    entry.take_back(&first);
    entry.count(&usage(100, 40, 7, 5), UsageSource::Engine);
    entry.end("length");
    let row = place.settled(entry).await;
    assert_eq!(counts(&row), (110, 44, 10, 8, 158));
    assert_eq!((row.finish.as_str(), row.usage_source.as_str()), ("length", "engine"), "its end was forgotten with it");
}

#[tokio::test]
async fn what_the_server_broke_costs_nothing_where_faults_are_refunded() {
    for (refunds, finish, cost) in [
        (true, "engine_crash", 10),
        (true, "failed", 10),
        (true, "aborted", 24),
        (true, "stop", 24),
        (false, "engine_crash", 24),
        (false, "failed", 24),
    ] {
        let place = Place::new(refunds);
        let entry = place.enter("req_1");
        assert_eq!(entry.refunds(), refunds);
        entry.of_model(None, "m", PRICE);
        entry.count(&usage(10, 0, 0, 0), UsageSource::Engine);
        // What was whole and is replaced stays charged.
        entry.set_aside();
        entry.count(&usage(7, 0, 1, 0), UsageSource::Engine);
        entry.end(finish);
        assert_eq!(entry.cost(), cost, "{refunds} {finish}");
        assert_eq!(place.settled(entry).await.cost_nusd, cost, "{refunds} {finish}");
    }
    let place = Place::new(true);
    let entry = place.enter("req_1");
    entry.of_model(None, "m", PRICE);
    entry.count(&usage(10, 0, 1, 0), UsageSource::Engine);
    entry.end("failed");
    assert_eq!(entry.set_aside().nusd, 0, "what broke is not charged for having been replaced");
    entry.count(&usage(7, 0, 1, 0), UsageSource::Engine);
    assert_eq!(counts(&place.settled(entry).await), (17, 0, 2, 0, 14));
}

#[tokio::test]
async fn tries_are_written_where_there_was_more_than_one_model_here() {
    let place = Place::new(true);
    let tried = |name: &str, tries: &[(&str, bool, Class, bool)]| {
        let entry = place.enter(name);
        let trace = Trace::default();
        entry.follow(trace.clone());
        for (target, is_upstream, class, was_replaced) in tries {
            let slot = trace.attempt(target, *is_upstream, PRICE);
            slot.failed(*class, Some(503));
            slot.settle(*class, usage(10, 4, 3, 0), UsageSource::Engine);
            if *was_replaced {
                slot.replaced();
            }
        }
        entry
    };
    let one = tried("one", &[("m", false, Class::Ok, false)]);
    let twice = tried("twice", &[("a", false, Class::Transient, false), ("b", false, Class::Ok, false)]);
    let elsewhere = tried("elsewhere", &[("u", true, Class::Ok, false)]);
    let several = [
        ("a", false, Class::Transient, false),
        ("b", false, Class::Ok, true),
        ("u", true, Class::Transient, false),
        ("c", false, Class::Ok, false),
    ];
    let several = tried("several", &several);
    assert_eq!(place.settled(one).await.attempts, []);
    let said = |attempts: &[Attempt]| -> Vec<_> {
        let said = |tried: &Attempt| {
            assert_eq!((tried.status, tried.in_tok, tried.out_tok), (Some(503), 10, 3));
            (tried.target.clone(), tried.class.clone(), tried.cost_nusd)
        };
        attempts.iter().map(said).collect()
    };
    let expect = |tries: &[(&str, &str, i64)]| -> Vec<_> {
        tries.iter().map(|(target, class, cost)| (String::from(*target), String::from(*class), *cost)).collect()
    };
    assert_eq!(said(&place.settled(elsewhere).await.attempts), expect(&[("u", "ok", 29)]));
    assert_eq!(said(&place.settled(twice).await.attempts), expect(&[("a", "transient", 0), ("b", "ok", 29)]));
    // What a model here broke off is free; what an upstream sent is not.
    let tries = [("a", "transient", 0), ("b", "replaced", 29), ("u", "transient", 29), ("c", "ok", 29)];
    assert_eq!(said(&place.settled(several).await.attempts), expect(&tries));
}

#[tokio::test]
async fn who_runs_and_has_moved_is_noted_once() {
    let place = Place::new(true);
    let (runs, waits, over) = (place.enter("runs"), place.enter("waits"), place.enter("over"));
    for entry in [&runs, &over] {
        entry.lock().is_running = true;
    }
    over.lock().is_over = true;
    assert_eq!(place.ledger.progress(), [], "nothing was counted");
    for entry in [&runs, &waits, &over] {
        entry.count(&usage(10, 4, 3, 0), UsageSource::Engine);
    }
    let noted = Progress { id: "runs".into(), in_tok: 10, cached_tok: 4, out_tok: 3 };
    assert_eq!(place.ledger.progress(), [noted]);
    assert_eq!(place.ledger.progress(), [], "it stands where it stood");
}

#[tokio::test]
async fn how_far_a_request_is_comes_to_the_disk_by_itself() {
    let place = Place::new(true);
    let entry = place.enter("req_1");
    entry.open().await.expect("sent").committed().await.expect("committed");
    entry.count(&usage(10, 4, 3, 0), UsageSource::Engine);
    let store = &place.ledger.store;
    let of = "SELECT total(in_tok * 100 + cached_tok * 10 + out_tok) FROM inflight WHERE id = 'req_1'";
    let noted = async {
        loop {
            let sum: f64 = store.read(|conn| Ok(conn.query_row(of, [], |row| row.get(0))?)).await.expect("a sum");
            if sum == 1043.0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, noted).await.expect("it is noted within a second or two");
}

#[tokio::test]
async fn rows_that_are_too_old_are_forgotten() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path());
    store.settle(RequestRow { id: "old".into(), ..RequestRow::default() }).await.expect("it is written");
    let written = unix_ms();
    while unix_ms() <= written + 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ledger = Ledger::start(store, Some(Duration::ZERO), true);
    let gone = async {
        while !ledger.store.read(|conn| logs(conn, &LogFilter::default(), (1, 0))).await.expect("rows").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is forgotten at the first look");
}

#[tokio::test]
async fn a_ledger_closes_behind_the_last_request() {
    let place = Place::new(true);
    let entry = place.enter("last");
    let order = std::cell::RefCell::new(Vec::new());
    let closes = async {
        place.ledger.close().await;
        order.borrow_mut().push("closed");
    };
    let ends = async {
        tokio::task::yield_now().await;
        order.borrow_mut().push("ended");
        drop(entry);
    };
    tokio::join!(closes, ends);
    assert_eq!(*order.borrow(), ["ended", "closed"]);
    place.ledger.close().await;
}

#[tokio::test]
async fn nobody_is_let_in_while_rows_can_not_be_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::start(open(dir.path()), None, true);
    assert!(ledger.admit().is_ok());
    let spoil = rusqlite::Connection::open(dir.path().join("hearth.db")).expect("the file");
    spoil.execute_batch("ALTER TABLE request RENAME TO gone").expect("spoiled");
    let entry = ledger.enter(EntryHead { request_id: "req_1", principal: &Principal::default(), ip: None });
    entry.settle().await.expect("it waits in the spill");
    assert!(matches!(ledger.admit(), Err(Error::LedgerUnavailable)));
    spoil.execute_batch("ALTER TABLE gone RENAME TO request").expect("well again");
    let recovered = async {
        while ledger.admit().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, recovered).await.expect("it recovers");
    ledger.store.flush().await;
    let rows = ledger.store.read(|conn| logs(conn, &LogFilter::default(), (10, 0))).await.expect("rows");
    assert_eq!(rows.len(), 1);
}

#[tokio::test]
async fn what_was_said_is_kept_as_it_was_given_at_last() {
    let dir = tempfile::tempdir().expect("a folder");
    let books = Books::open(
        BooksConfig {
            durability: Durability::Process,
            on_failure: OnFailure::Reject,
            audit_content: true,
            ..BooksConfig::new(dir.path().to_owned())
        },
        &Arc::new(Metrics::new()),
    )
    .expect("fresh books");
    let spec = KeySpec { audit: AuditLevel::Content, ..KeySpec::default() };
    let key = KeyRecord::new("key".into(), spec, None, 0, false);
    let capture = books.capture(&key).await.expect("a key for its words").expect("they are kept");
    let principal = Principal::default();
    let entry = books.ledger().enter(EntryHead { request_id: "req_1", principal: &principal, ip: None });
    entry.keep(capture, [Prompt::Text("what was asked".into())].iter());
    let told = |content: &str| Delta { content: content.into(), ..Delta::default() };
    entry.tell(0, &told("a first try"));
    entry.untell();
    entry.tell(0, &told("what was "));
    entry.tell(0, &told("answered"));
    entry.settle().await.expect("it is written");
    let kept = books.content("auditor", "req_1").await.expect("its words");
    let kept: serde_json::Value = serde_json::from_str(&kept).expect("JSON");
    assert_eq!(kept.pointer("/prompts/0/text"), Some(&"what was asked".into()));
    assert_eq!(kept.pointer("/answers/0/content"), Some(&"what was answered".into()));
    let rows = books.store().read(|conn| logs(conn, &LogFilter::default(), (10, 0))).await.expect("rows");
    let digest = rows.iter().find(|row| row.id == "req_1").and_then(|row| row.content_digest.as_deref());
    assert_eq!(digest.map(str::len), Some(64), "the row says what was said");
}
