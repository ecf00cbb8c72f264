//! Rows come back as they were written, and are summed with all that they say.

use super::tests::open;
use super::*;
use crate::gateway::spec::Price;

const DAY: i64 = 86_400_000;

/// A row in which each field has a value of its own.
fn full() -> RequestRow {
    let attempt = |n: u64| Attempt {
        target: format!("target{n}"),
        class: "transient".into(),
        status: Some(503),
        ms: 40 + n,
        in_tok: 50 + n,
        out_tok: 60 + n,
        cost_nusd: 70 + i64::try_from(n).expect("few"),
    };
    let text = |text: &str| Some(text.to_owned());
    RequestRow {
        id: "req_full".into(),
        t0: 3 * DAY + 1,
        t_first: Some(3 * DAY + 2),
        t_end: 3 * DAY + 3,
        key_id: text("key"),
        team_id: text("team"),
        user_id: text("user"),
        end_user: text("end user"),
        ip: text("::1"),
        endpoint: "/v1/chat/completions".into(),
        model_req: text("alias"),
        model: text("model"),
        served_by: text("local"),
        status: 200,
        finish: "stop".into(),
        error_code: text("none"),
        stream: true,
        in_tok: 11,
        cached_tok: 12,
        out_tok: 13,
        reason_tok: 14,
        usage_source: "engine".into(),
        cost_nusd: 15,
        price: Some(Price { input: 16, cached_input: 17, output: 18 }),
        queue_ms: Some(19),
        cache: text("miss"),
        tags: vec!["red".into(), "blue".into()],
        attempts: (0..12).map(attempt).collect(),
        content_digest: text("digest"),
        trace_id: text("trace"),
        budgets: vec!["one".into(), "two".into()],
        content: None,
    }
}

async fn written(store: &Arc<Store>) -> Vec<RequestRow> {
    store.read(|conn| logs(conn, &LogFilter::default(), (100, 0))).await.expect("rows")
}

#[tokio::test]
async fn a_row_comes_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bare = RequestRow { id: "req_bare".into(), t0: 1, ..RequestRow::default() };
    let least = RequestRow { id: "req_least".into(), t0: 2, ..RequestRow::default() };
    for row in [&full(), &bare, &least] {
        store.settle(row.clone()).await.expect("settled");
    }
    assert_eq!(written(&store).await, [full(), least.clone(), bare.clone()]);
    // By their numbers, without their tries, which are asked for apart.
    let by_number = |seq, most| store.read_now(move |conn| rows_after(conn, seq, most)).expect("rows");
    let without = RequestRow { attempts: Vec::new(), ..full() };
    let all = by_number(0, 100);
    assert_eq!(all.iter().map(|(_, row)| row.clone()).collect::<Vec<_>>(), [without.clone(), bare, least]);
    let numbers: Vec<i64> = all.iter().map(|(seq, _)| *seq).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b) && by_number(0, 1) == all[..1] && by_number(numbers[0], 9) == all[1..]);
    assert_eq!(all[0].1.digest(numbers[0]), full().digest(numbers[0]), "the same from memory and from the table");
    assert_ne!(full().digest(1), full().digest(2));
    assert_ne!(full().digest(1), RequestRow { cost_nusd: 16, ..full() }.digest(1));
    let tries = |first, last| store.read_now(move |conn| attempts_of(conn, first, last)).expect("tries");
    assert_eq!(tries(numbers[0], numbers[2]), [("req_full".to_owned(), full().attempts)].into());
    assert!(tries(numbers[1], numbers[2]).is_empty());
}

#[tokio::test]
async fn a_row_is_summed_by_day_tag_and_budget() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let failed = RequestRow { id: "req_failed".into(), status: 500, ..full() };
    // The last moment of the day before; what is written again counts once.
    let before = RequestRow { id: "req_before".into(), t0: 3 * DAY - 1, ..full() };
    for row in [full(), failed, before.clone(), before] {
        store.settle(row).await.expect("settled");
    }
    let sums = |sql: &'static str| {
        let read = move |conn: &Connection| {
            let mut statement = conn.prepare(sql)?;
            let lines = statement.query_map([], |row| row.get(0))?;
            Ok(lines.collect::<rusqlite::Result<Vec<String>>>()?)
        };
        store.read_now(read).expect("sums")
    };
    let of_day = sums(
        "SELECT concat_ws(' ', day, key_id, team_id, user_id, model, n, n_failed, in_tok, cached_tok, out_tok, cost_nusd)
         FROM usage_day ORDER BY day",
    );
    assert_eq!(of_day, ["2 key team user model 1 0 11 12 13 15", "3 key team user model 2 1 22 24 26 30"]);
    let of_tag =
        sums("SELECT concat_ws(' ', day, tag, team_id, n, in_tok, out_tok, cost_nusd) FROM usage_tag ORDER BY 1");
    let tags = ["2 blue team 1 11 13 15", "2 red team 1 11 13 15", "3 blue team 2 22 26 30", "3 red team 2 22 26 30"];
    assert_eq!(of_tag, tags);
    let of_budget = sums("SELECT concat_ws(' ', day, budget_id, tok, cost_nusd) FROM usage_budget ORDER BY 1");
    assert_eq!(of_budget, ["2 one 24 15", "2 two 24 15", "3 one 48 30", "3 two 48 30"]);
}

#[tokio::test]
async fn a_number_that_no_column_holds_is_the_largest_that_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let huge = RequestRow { in_tok: u64::MAX, out_tok: u64::MAX - 1, queue_ms: Some(u64::MAX), ..full() };
    store.settle(huge).await.expect("settled");
    let row = written(&store).await.remove(0);
    let most = u64::try_from(i64::MAX).expect("positive");
    assert_eq!((row.in_tok, row.out_tok, row.queue_ms), (most, most, Some(most)));
}

/// What runs when the process dies, as far as it was noted.
#[tokio::test]
async fn a_request_that_ran_is_settled_as_it_was_noted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for id in ["req_noted", "req_begun"] {
        let began = RequestRow { id: id.into(), attempts: Vec::new(), ..full() };
        store.open_row(began).await.expect("sent").committed().await.expect("committed");
    }
    let at = crate::gateway::unix_ms();
    store.progress(vec![Progress {
        id: "req_noted".into(),
        in_tok: 2_000_000,
        cached_tok: 1_000_000,
        out_tok: 500_000,
    }]);
    store.flush().await;
    drop(store);
    let rows = written(&open(dir.path())).await;
    let find = |id: &str| rows.iter().find(|row| row.id == id).expect("its row").clone();
    let left = |id: &str| RequestRow {
        id: id.into(),
        attempts: Vec::new(),
        finish: "crash".into(),
        usage_source: "progress".into(),
        ..full()
    };
    let noted = find("req_noted");
    assert!(noted.t_end >= at, "when it was heard of last");
    let cost_nusd = 16 + 17 + 9;
    let counts = RequestRow { in_tok: 2_000_000, cached_tok: 1_000_000, out_tok: 500_000, ..left("req_noted") };
    assert_eq!(noted, RequestRow { t_end: noted.t_end, cost_nusd, ..counts });
    assert_eq!(find("req_begun"), RequestRow { t_end: full().t0, cost_nusd: 1, ..left("req_begun") });
}

#[test]
fn a_row_has_failed_by_its_status_or_its_end() {
    for (status, finish, is_failed) in [
        (200, "stop", false),
        (399, "ok", false),
        (400, "refused", true),
        (500, "", true),
        (200, "failed", true),
        (200, "engine_crash", true),
        (200, "crash", true),
        (200, "aborted", false),
    ] {
        let row = RequestRow { status, finish: finish.into(), ..RequestRow::default() };
        assert_eq!(row.is_failed(), is_failed, "{status} {finish}");
    }
}

/// "Roughly and never less than half": whatever a row is large by, the spill counts it.
#[test]
fn what_a_row_takes_is_known_roughly() {
    let long = "x".repeat(50_000);
    let some = || Some(long.clone());
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(include_str!("schema.sql")).unwrap();
    make_dek(&conn, &[2; 32], "ada").expect("a key");
    let dek = dek(&conn, &[2; 32], "ada").expect("read").expect("the key");
    let base = RequestRow::default().n_bytes();
    assert!(base >= size_of::<RequestRow>());
    let large = [
        RequestRow { id: long.clone(), ..RequestRow::default() },
        RequestRow { endpoint: long.clone(), ..RequestRow::default() },
        RequestRow { key_id: some(), ..RequestRow::default() },
        RequestRow { team_id: some(), ..RequestRow::default() },
        RequestRow { user_id: some(), ..RequestRow::default() },
        RequestRow { end_user: some(), ..RequestRow::default() },
        RequestRow { ip: some(), ..RequestRow::default() },
        RequestRow { model_req: some(), ..RequestRow::default() },
        RequestRow { model: some(), ..RequestRow::default() },
        RequestRow { tags: vec!["x".repeat(1_000); 50], ..RequestRow::default() },
        RequestRow { tags: vec!["x".to_owned(); 2_000], ..RequestRow::default() },
        RequestRow { content: dek.seal("req", long.as_bytes()), ..RequestRow::default() },
    ];
    for (n, row) in large.iter().enumerate() {
        assert!((25_000..100_000).contains(&(row.n_bytes() - base)), "{n}: {}", row.n_bytes());
    }
    let tries = RequestRow { attempts: vec![Attempt::default(); 500], ..RequestRow::default() };
    let real = 500 * size_of::<Attempt>();
    assert!((real / 2..real * 2).contains(&(tries.n_bytes() - base)), "{} for {real}", tries.n_bytes());
    let all = RequestRow { id: long.clone(), endpoint: long, attempts: tries.attempts, ..large[9].clone() };
    assert!(all.n_bytes() >= 150_000 + real / 2);
}
