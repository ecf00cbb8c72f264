//! A ledger that has been kept for a while: rows of requests, spread over thirty days, with the sums that go with them; and
//! the admin plane asked about them.

use rusqlite::Connection;
use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, thread};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Rows of one transaction.
const BATCH: u64 = 250_000;
/// Each report is asked for so often.
const ROUNDS: usize = 7;

/// Writes `n` rows behind those that are there: of 200 keys in 20 teams, five models, one of them asked for by one request in
/// a thousand. Nothing else may have the file open.
pub fn fill(database: &Path, n: u64) -> Outcome<()> {
    let mut conn = Connection::open(database)?;
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -200000;")?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let first: i64 = conn.query_row("SELECT request_seq FROM state", [], |row| row.get(0))?;
    let step = 30 * 86_400_000 / i64::try_from(n)?.max(1);
    let mut done = 0;
    while done < n {
        let (from, until) = (i64::try_from(done)?, i64::try_from((done + BATCH).min(n))?);
        let tx = conn.transaction()?;
        tx.execute(
            "WITH RECURSIVE i(n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM i WHERE n + 1 < ?2)
             INSERT INTO request(seq, id, boot, t0, t_first, t_end, key_id, team_id, user_id, endpoint, model_req, model,
               served_by, status, finish, stream, in_tok, cached_tok, out_tok, reason_tok, usage_source, cost_nusd, queue_ms,
               tags)
             SELECT ?3 + n + 1, printf('req_%016x%016x', n * 2654435761 % 4294967296, n), 1, ?4 - (?5 - n) * ?6,
               ?4 - (?5 - n) * ?6 + 40, ?4 - (?5 - n) * ?6 + 900, printf('key%09d', n * 7919 % 200),
               printf('team%d', n * 7919 % 20), printf('user%d', n % 500), '/v1/chat/completions', 'gpt-4o-mini',
               CASE WHEN n % 1000 = 7 THEN 'rare' ELSE printf('model-%d', n % 4) END, 'local',
               CASE n % 50 WHEN 0 THEN 500 ELSE 200 END, CASE n % 50 WHEN 0 THEN 'failed' ELSE 'stop' END, n % 2,
               200 + n % 800, n % 100, 20 + n % 300, 0, 'engine', 1000 * (n % 977), n % 20, '[]' FROM i",
            rusqlite::params![from, until, first, now, i64::try_from(n)?, step],
        )?;
        tx.commit()?;
        done = u64::try_from(until)?;
    }
    let last = first + i64::try_from(n)?;
    conn.execute(
        "INSERT INTO usage_day SELECT t0 / 86400000, coalesce(key_id, ''), coalesce(team_id, ''), coalesce(user_id, ''),
           coalesce(model, ''), count(*), sum(status >= 400), sum(in_tok), sum(cached_tok), sum(out_tok), sum(cost_nusd)
         FROM request WHERE seq > ?1 GROUP BY 1, 2, 3, 4, 5",
        [first],
    )?;
    conn.execute("UPDATE state SET request_seq = ?1", [last])?;
    conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);")?;
    Ok(())
}

/// The folder `from` with all its files, as `to`.
pub fn copy(from: &Path, to: &Path) -> Outcome<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// A day of the last ones, as the admin plane writes it.
fn day(days_ago: u64) -> String {
    let at = jiff::Timestamp::now().as_second() - i64::try_from(days_ago).unwrap_or(0) * 86_400;
    let at = jiff::Timestamp::from_second(at).unwrap_or_default();
    at.to_zoned_datetime(jiff::tz::TimeZone::UTC).date().to_string()
}

/// Asks the server over `books` for reports of the last seven days and prints how long they took.
pub fn report(books: &Path) -> Outcome<()> {
    let key = fs::read_to_string(books.join("master.key"))?;
    let since = day(7);
    for (name, query) in [
        ("logs, summary", format!("/spend/logs?start_date={since}")),
        ("logs, summary, one model", format!("/spend/logs?start_date={since}&model=model-1")),
        ("spend by model", format!("/global/spend/report?group_by=model&start_date={since}")),
        ("last 100 rows of a model", format!("/spend/logs?start_date={since}&model=model-1&summarize=false")),
        ("last 100 rows of a rare model", format!("/spend/logs?start_date={since}&model=rare&summarize=false")),
        ("last 100 rows of a key", format!("/spend/logs?start_date={since}&api_key=key000000007&summarize=false")),
        ("spend by target", format!("/global/spend/report?group_by=target&start_date={since}")),
    ] {
        let mut took: Vec<Duration> = Vec::new();
        let mut n_bytes = 0;
        for _ in 0..ROUNDS {
            let since = Instant::now();
            n_bytes = get(&books.join("admin.sock"), &query, key.trim())?;
            took.push(since.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        took.sort_unstable();
        let ms = |idx: usize| took[idx].as_secs_f64() * 1000.0;
        println!("  {name:<30} p50 {:>8.1} ms  worst {:>8.1} ms  {n_bytes} bytes", ms(ROUNDS / 2), ms(ROUNDS - 1));
    }
    Ok(())
}

/// Bytes of an answer.
fn get(socket: &Path, path: &str, key: &str) -> Outcome<usize> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: hearth\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    if !bytes.starts_with(b"HTTP/1.1 200") {
        return Err(format!("{path}: {}", String::from_utf8_lossy(&bytes)).into());
    }
    Ok(bytes.len())
}
