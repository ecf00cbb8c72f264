//! The database's side: how it is reached, what it is told.

use super::batch::{self, Batch};
use super::{Cursor, ShipConfig, ShipError};
use crate::gateway::store::Store;
use crate::gateway::upstream::tls_of;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls, Transaction};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The version of `schema.sql`.
const VERSION: i32 = 1;
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// For one transaction.
const WRITE_WAIT: Duration = Duration::from_secs(60);
/// So that servers that come at once make the tables one after another.
const SCHEMA_LOCK: i64 = 0x6872_7468;

type Result<T> = std::result::Result<T, ShipError>;

impl From<tokio_postgres::Error> for ShipError {
    /// What the database says of a row's values is left out.
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(said) = error.as_db_error() else {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            return ShipError::Database(error.to_string() + &cause.unwrap_or_default());
        };
        let code = said.code().code();
        match code.starts_with("22") {
            true => ShipError::Database(format!("a value was refused (SQLSTATE {code})")),
            false => ShipError::Database(format!("{} (SQLSTATE {code})", said.message())),
        }
    }
}

/// An address as PostgreSQL's clients know it, `sslrootcert` among its options.
pub(super) fn config(url: &str) -> std::result::Result<ShipConfig, String> {
    let no = || "an address like postgres://USER:PASSWORD@HOST/DATABASE is expected".to_owned();
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(no());
    }
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let mut ca: Option<PathBuf> = None;
    let mut others = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("sslrootcert", path)) => ca = Some(path.into()),
            _ => others.push(option),
        }
    }
    let url = if others.is_empty() { base.to_owned() } else { format!("{base}?{}", others.join("&")) };
    let parsed: Config = url.parse().map_err(|_| no())?;
    let host = match parsed.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => return Err(no()),
    };
    let database = parsed.get_dbname().or(parsed.get_user()).unwrap_or_default();
    Ok(ShipConfig { place: format!("{host}/{database}"), url, ca })
}

/// A connection that writes as this server.
pub(super) struct Session {
    client: Client,
    connection: JoinHandle<()>,
    instance: String,
    cursor: Cursor,
    /// The last checkpoint that has arrived.
    checked: i64,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    pub(super) async fn open(config: &ShipConfig, instance: &str, store: &Arc<Store>) -> Result<Self> {
        let (client, connection) =
            tokio::time::timeout(CONNECT_WAIT, connect(config)).await.map_err(|_| ShipError::Late)??;
        let mut session =
            Self { client, connection, instance: instance.to_owned(), cursor: Cursor::default(), checked: 0 };
        tokio::time::timeout(WRITE_WAIT, session.begin(store)).await.map_err(|_| ShipError::Late)??;
        Ok(session)
    }

    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    pub(super) fn checked(&self) -> i64 {
        self.checked
    }

    async fn begin(&mut self, store: &Arc<Store>) -> Result<()> {
        schema(&mut self.client).await?;
        let lock = "SELECT pg_try_advisory_lock(hashtextextended('hearth ' || $1::text, 0))";
        if !self.client.query_one(lock, &[&self.instance]).await?.get::<_, bool>(0) {
            return Err(ShipError::Taken);
        }
        self.client
            .execute("INSERT INTO hearth_instance(instance) VALUES ($1) ON CONFLICT DO NOTHING", &[&self.instance])
            .await?;
        let line = self
            .client
            .query_one("SELECT request_seq, audit_seq FROM hearth_instance WHERE instance = $1", &[&self.instance])
            .await?;
        self.cursor = Cursor { request_seq: line.get(0), audit_seq: line.get(1) };
        let checked = "SELECT coalesce(max(seq), 0) FROM hearth_checkpoint WHERE instance = $1";
        self.checked = self.client.query_one(checked, &[&self.instance]).await?.get(0);
        let seq = self.cursor.request_seq;
        let (own, last) = store.read(move |conn| batch::row_at(conn, seq)).await?;
        let theirs = self
            .client
            .query_opt("SELECT id FROM hearth_request WHERE instance = $1 AND seq = $2", &[&self.instance, &seq])
            .await?
            .map(|line| line.get::<_, String>(0));
        // Either may have been removed since, being old.
        let is_other = matches!((&own, &theirs), (Some(own), Some(theirs)) if own != theirs);
        if is_other || last < seq { Err(ShipError::Diverged) } else { Ok(()) }
    }

    pub(super) async fn still_there(&self) -> Result<()> {
        let asked = self.client.simple_query("");
        tokio::time::timeout(CONNECT_WAIT, asked).await.map_err(|_| ShipError::Late)??;
        Ok(())
    }

    /// All of a batch with the cursor behind it, or nothing.
    pub(super) async fn write(&mut self, batch: &Batch) -> Result<()> {
        tokio::time::timeout(WRITE_WAIT, self.transact(batch)).await.map_err(|_| ShipError::Late)??;
        (self.cursor, self.checked) = (batch.to, batch.checked);
        Ok(())
    }

    async fn transact(&mut self, batch: &Batch) -> Result<()> {
        let tx = self.client.transaction().await?;
        let lines = [
            (REQUESTS, Some(&batch.requests)),
            (ATTEMPTS, Some(&batch.requests)),
            (LINKS, Some(&batch.links)),
            (CHECKPOINTS, Some(&batch.checkpoints)),
            (KEYS, batch.keys.as_ref()),
            (TEAMS, batch.teams.as_ref()),
        ];
        for (statement, lines) in lines {
            insert(&tx, statement, &self.instance, lines).await?;
        }
        tx.execute(
            "UPDATE hearth_instance SET request_seq = $2, audit_seq = $3, last_seen = now() WHERE instance = $1",
            &[&self.instance, &batch.to.request_seq, &batch.to.audit_seq],
        )
        .await?;
        Ok(tx.commit().await?)
    }
}

async fn insert(tx: &Transaction<'_>, statement: &str, instance: &str, lines: Option<&Value>) -> Result<()> {
    let Some(lines) = lines.filter(|lines| lines.as_array().is_some_and(|lines| !lines.is_empty())) else {
        return Ok(());
    };
    tx.execute(statement, &[&instance, &lines.to_string()]).await?;
    Ok(())
}

/// `$1`: the server's name; `$2`: lines as JSON.
const REQUESTS: &str = "
INSERT INTO hearth_request(instance, seq, id, t0, t_first, t_end, key_id, team_id, user_id, end_user, ip, endpoint, model_req,
  model, served_by, status, finish, error_code, stream, in_tok, cached_tok, out_tok, reason_tok, usage_source, cost_nusd, price,
  queue_ms, cache, tags, content_digest, trace_id)
SELECT $1, x.* FROM json_to_recordset($2::text::json) AS x(seq bigint, id text, t0 bigint, t_first bigint, t_end bigint,
  key_id text, team_id text, user_id text, end_user text, ip text, endpoint text, model_req text, model text, served_by text,
  status integer, finish text, error_code text, stream boolean, in_tok bigint, cached_tok bigint, out_tok bigint,
  reason_tok bigint, usage_source text, cost_nusd bigint, price jsonb, queue_ms bigint, cache text, tags jsonb,
  content_digest text, trace_id text)
ORDER BY x.seq ON CONFLICT DO NOTHING";

const ATTEMPTS: &str = "
INSERT INTO hearth_attempt(instance, request_id, n, target, class, status, ms, in_tok, out_tok, cost_nusd)
SELECT $1, x.id, e.n, a.* FROM json_to_recordset($2::text::json) AS x(id text, attempts json),
  json_array_elements(x.attempts) WITH ORDINALITY AS e(value, n),
  json_to_record(e.value) AS a(target text, class text, status integer, ms bigint, in_tok bigint, out_tok bigint,
    cost_nusd bigint)
ORDER BY x.id, e.n ON CONFLICT DO NOTHING";

const LINKS: &str = "
INSERT INTO hearth_audit(instance, seq, ts, actor, action, object, detail, prev, mac, epoch)
SELECT $1, x.* FROM json_to_recordset($2::text::json) AS x(seq bigint, ts bigint, actor text, action text, object text,
  detail text, prev text, mac text, epoch bigint)
ORDER BY x.seq ON CONFLICT DO NOTHING";

const CHECKPOINTS: &str = "
INSERT INTO hearth_checkpoint(instance, seq, ts, head, sig, epoch, public, next)
SELECT $1, x.* FROM json_to_recordset($2::text::json) AS x(seq bigint, ts bigint, head text, sig text, epoch bigint,
  public text, next text)
ORDER BY x.seq ON CONFLICT DO NOTHING";

const KEYS: &str = "
INSERT INTO hearth_key(instance, id, alias, team_id, user_id, created, blocked, deleted)
SELECT $1, x.* FROM json_to_recordset($2::text::json) AS x(id text, alias text, team_id text, user_id text, created bigint,
  blocked boolean, deleted bigint)
ORDER BY x.id
ON CONFLICT (instance, id) DO UPDATE SET alias = excluded.alias, team_id = excluded.team_id, user_id = excluded.user_id,
  blocked = excluded.blocked, deleted = excluded.deleted";

const TEAMS: &str = "
INSERT INTO hearth_team(instance, id, alias, created, blocked, deleted)
SELECT $1, x.* FROM json_to_recordset($2::text::json) AS x(id text, alias text, created bigint, blocked boolean,
  deleted bigint)
ORDER BY x.id
ON CONFLICT (instance, id) DO UPDATE SET alias = excluded.alias, blocked = excluded.blocked, deleted = excluded.deleted";

async fn schema(client: &mut Client) -> Result<()> {
    let version = async |tx: &Transaction<'_>| -> Result<Option<i32>> {
        let is_there = tx.query_one("SELECT to_regclass('hearth_schema') IS NOT NULL", &[]).await?;
        match is_there.get::<_, bool>(0) {
            true => Ok(Some(tx.query_one("SELECT max(version) FROM hearth_schema", &[]).await?.get(0))),
            false => Ok(None),
        }
    };
    let tx = client.transaction().await?;
    tx.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
    match version(&tx).await? {
        Some(known) if known > VERSION => return Err(ShipError::Newer(known, VERSION)),
        Some(_) => {}
        None => tx.batch_execute(include_str!("schema.sql")).await?,
    }
    Ok(tx.commit().await?)
}

/// Without a word about TLS, only this machine is talked to without it.
async fn connect(config: &ShipConfig) -> Result<(Client, JoinHandle<()>)> {
    let mut parsed: Config = config.url.parse().map_err(ShipError::from)?;
    let is_said = config.url.contains("sslmode=");
    let is_near = parsed.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        Host::Unix(_) => true,
    });
    if !is_said {
        parsed.ssl_mode(if is_near { SslMode::Disable } else { SslMode::Require });
    }
    parsed.application_name("hearth").connect_timeout(CONNECT_WAIT);
    if parsed.get_ssl_mode() == SslMode::Disable {
        let (client, connection) = parsed.connect(NoTls).await?;
        // Its error comes to whoever waits for an answer.
        return Ok((client, tokio::spawn(async move { drop(connection.await) })));
    }
    let tls = tls_of(config.ca.as_deref()).map_err(ShipError::Database)?;
    let (client, connection) = parsed.connect(MakeRustlsConnect::new(tls)).await?;
    Ok((client, tokio::spawn(async move { drop(connection.await) })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_never_shown_whole() {
        let good = config("postgres://me:hush@db.example:5433/books?sslrootcert=/etc/ca.pem&sslmode=require").unwrap();
        assert_eq!((good.place.as_str(), good.ca.as_deref()), ("db.example/books", Some("/etc/ca.pem".as_ref())));
        assert!(!format!("{good:?}").contains("hush") && !good.url.contains("sslrootcert"));
        assert_eq!(config("postgresql://me@localhost").unwrap().place, "localhost/me");
        assert_eq!(config("postgres://me@%2Frun%2Fpg/books").unwrap().place, "/run/pg/books");
        for bad in ["mysql://x/y", "postgres://", "postgres://me:hush@h/d?sslmode=maybe", "hearth.db", ""] {
            let error = config(bad).unwrap_err();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
