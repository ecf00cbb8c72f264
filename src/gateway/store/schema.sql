-- The books of one server. Times are unix milliseconds, money is nano-USD. Version 1.
CREATE TABLE team(
  id TEXT PRIMARY KEY,
  spec TEXT NOT NULL,
  created INTEGER NOT NULL,
  blocked INTEGER NOT NULL DEFAULT 0,
  deleted INTEGER
) STRICT;

-- Rows stay when a key is revoked, so that spend keeps its names; the hashes are overwritten then.
CREATE TABLE key(
  id TEXT PRIMARY KEY,
  hash BLOB NOT NULL,
  alias TEXT,
  team_id TEXT,
  spec TEXT NOT NULL,
  created INTEGER NOT NULL,
  blocked INTEGER NOT NULL DEFAULT 0,
  deleted INTEGER,
  prev_hash BLOB,
  prev_until INTEGER
) STRICT;
CREATE UNIQUE INDEX key_by_alias ON key(alias) WHERE alias IS NOT NULL AND deleted IS NULL;

-- From when on the spending of a scope ('key', 'team', 'user') counts for its budget, where an operator reset it.
CREATE TABLE reset(
  scope TEXT NOT NULL,
  scope_id TEXT NOT NULL,
  at INTEGER NOT NULL,
  PRIMARY KEY(scope, scope_id)
) STRICT, WITHOUT ROWID;

-- Settled requests, inserted once. seq is given by the one writer and never again, so a range of it is a group of rows.
CREATE TABLE request(
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  boot INTEGER NOT NULL,
  t0 INTEGER NOT NULL,
  t_first INTEGER,
  t_end INTEGER NOT NULL,
  key_id TEXT,
  team_id TEXT,
  user_id TEXT,
  end_user TEXT,
  ip TEXT,
  endpoint TEXT NOT NULL,
  model_req TEXT,
  model TEXT,
  served_by TEXT,
  status INTEGER NOT NULL,
  finish TEXT NOT NULL,
  error_code TEXT,
  stream INTEGER NOT NULL,
  in_tok INTEGER NOT NULL,
  cached_tok INTEGER NOT NULL,
  out_tok INTEGER NOT NULL,
  reason_tok INTEGER NOT NULL,
  usage_source TEXT NOT NULL,
  cost_nusd INTEGER NOT NULL,
  price TEXT,
  queue_ms INTEGER,
  cache TEXT,
  tags TEXT NOT NULL,
  content_digest TEXT
) STRICT;
CREATE INDEX request_by_time ON request(t0);
CREATE INDEX request_by_key ON request(key_id, t0);

CREATE TABLE attempt(
  request_id TEXT NOT NULL,
  n INTEGER NOT NULL,
  target TEXT NOT NULL,
  class TEXT NOT NULL,
  status INTEGER,
  ms INTEGER NOT NULL,
  in_tok INTEGER NOT NULL,
  out_tok INTEGER NOT NULL,
  cost_nusd INTEGER NOT NULL,
  PRIMARY KEY(request_id, n)
) STRICT, WITHOUT ROWID;

-- Requests that were admitted and have no settled row yet. row: what the settled row will say, as JSON.
CREATE TABLE inflight(
  id TEXT PRIMARY KEY,
  boot INTEGER NOT NULL,
  t0 INTEGER NOT NULL,
  row TEXT NOT NULL,
  in_tok INTEGER NOT NULL,
  cached_tok INTEGER NOT NULL,
  out_tok INTEGER NOT NULL,
  updated INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Sums, kept with every row, so that a report of a million requests reads a few hundred lines. day: days since 1970, UTC.
CREATE TABLE usage_day(
  day INTEGER NOT NULL,
  key_id TEXT NOT NULL,
  team_id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  model TEXT NOT NULL,
  n INTEGER NOT NULL,
  n_failed INTEGER NOT NULL,
  in_tok INTEGER NOT NULL,
  cached_tok INTEGER NOT NULL,
  out_tok INTEGER NOT NULL,
  cost_nusd INTEGER NOT NULL,
  PRIMARY KEY(day, key_id, team_id, user_id, model)
) STRICT, WITHOUT ROWID;
CREATE TABLE usage_tag(
  day INTEGER NOT NULL,
  tag TEXT NOT NULL,
  team_id TEXT NOT NULL,
  n INTEGER NOT NULL,
  in_tok INTEGER NOT NULL,
  out_tok INTEGER NOT NULL,
  cost_nusd INTEGER NOT NULL,
  PRIMARY KEY(day, tag, team_id)
) STRICT, WITHOUT ROWID;

-- Acts and digests of request rows, each link's mac over the one before.
CREATE TABLE audit(
  seq INTEGER PRIMARY KEY,
  ts INTEGER NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  object TEXT NOT NULL,
  detail TEXT NOT NULL,
  prev BLOB NOT NULL,
  mac BLOB NOT NULL
) STRICT;
CREATE INDEX audit_retention ON audit(seq) WHERE action = 'retention';
-- Signed: at this seq the chain's head was this.
CREATE TABLE checkpoint(
  seq INTEGER PRIMARY KEY,
  ts INTEGER NOT NULL,
  head BLOB NOT NULL,
  sig BLOB NOT NULL
) STRICT;

-- Words of requests, sealed under their subject's key (dek), which is sealed under the key in content.key.
CREATE TABLE dek(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  subject TEXT NOT NULL UNIQUE,
  nonce BLOB NOT NULL,
  wrapped BLOB NOT NULL
) STRICT;
CREATE TABLE content(
  request_id TEXT PRIMARY KEY,
  dek_id INTEGER NOT NULL,
  nonce BLOB NOT NULL,
  ct BLOB NOT NULL
) STRICT;
CREATE INDEX content_by_dek ON content(dek_id);

-- One line: the number of starts, and where a probe writes.
CREATE TABLE state(
  one INTEGER PRIMARY KEY CHECK(one = 1),
  boot INTEGER NOT NULL,
  request_seq INTEGER NOT NULL,
  probe INTEGER NOT NULL
) STRICT;
INSERT INTO state(one, boot, request_seq, probe) VALUES (1, 0, 0, 0);
