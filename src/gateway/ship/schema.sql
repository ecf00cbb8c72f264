-- What hearths send to PostgreSQL. Times are unix milliseconds, money is nano-USD. Version 1.
CREATE TABLE hearth_schema(version INTEGER NOT NULL);
INSERT INTO hearth_schema VALUES (1);

-- One line for each server, with what has arrived of it.
CREATE TABLE hearth_instance(
  instance TEXT PRIMARY KEY,
  request_seq BIGINT NOT NULL DEFAULT 0,
  audit_seq BIGINT NOT NULL DEFAULT 0,
  first_seen TIMESTAMPTZ NOT NULL DEFAULT now(),
  last_seen TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE hearth_request(
  instance TEXT NOT NULL,
  seq BIGINT NOT NULL,
  id TEXT NOT NULL,
  t0 BIGINT NOT NULL,
  t_first BIGINT,
  t_end BIGINT NOT NULL,
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
  stream BOOLEAN NOT NULL,
  in_tok BIGINT NOT NULL,
  cached_tok BIGINT NOT NULL,
  out_tok BIGINT NOT NULL,
  reason_tok BIGINT NOT NULL,
  usage_source TEXT NOT NULL,
  cost_nusd BIGINT NOT NULL,
  price JSONB,
  queue_ms BIGINT,
  cache TEXT,
  tags JSONB NOT NULL,
  content_digest TEXT,
  trace_id TEXT,
  PRIMARY KEY(instance, seq)
);
CREATE INDEX hearth_request_by_time ON hearth_request(t0);
CREATE INDEX hearth_request_by_id ON hearth_request(id);
CREATE INDEX hearth_request_by_key ON hearth_request(key_id, t0);

CREATE TABLE hearth_attempt(
  instance TEXT NOT NULL,
  request_id TEXT NOT NULL,
  n INTEGER NOT NULL,
  target TEXT NOT NULL,
  class TEXT NOT NULL,
  status INTEGER,
  ms BIGINT NOT NULL,
  in_tok BIGINT NOT NULL,
  out_tok BIGINT NOT NULL,
  cost_nusd BIGINT NOT NULL,
  PRIMARY KEY(instance, request_id, n)
);

-- Names for reports; never a hash.
CREATE TABLE hearth_key(
  instance TEXT NOT NULL,
  id TEXT NOT NULL,
  alias TEXT,
  team_id TEXT,
  user_id TEXT,
  created BIGINT NOT NULL,
  blocked BOOLEAN NOT NULL,
  deleted BIGINT,
  PRIMARY KEY(instance, id)
);
CREATE TABLE hearth_team(
  instance TEXT NOT NULL,
  id TEXT NOT NULL,
  alias TEXT,
  created BIGINT NOT NULL,
  blocked BOOLEAN NOT NULL,
  deleted BIGINT,
  PRIMARY KEY(instance, id)
);

-- The audit chain, away from the server that could rewrite it.
CREATE TABLE hearth_audit(
  instance TEXT NOT NULL,
  seq BIGINT NOT NULL,
  ts BIGINT NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  object TEXT NOT NULL,
  detail TEXT NOT NULL,
  prev TEXT NOT NULL,
  mac TEXT NOT NULL,
  epoch BIGINT NOT NULL,
  PRIMARY KEY(instance, seq)
);
CREATE TABLE hearth_checkpoint(
  instance TEXT NOT NULL,
  seq BIGINT NOT NULL,
  ts BIGINT NOT NULL,
  head TEXT NOT NULL,
  sig TEXT NOT NULL,
  epoch BIGINT NOT NULL,
  public TEXT NOT NULL,
  next TEXT,
  PRIMARY KEY(instance, seq)
);

-- Sums of all hearths.
CREATE VIEW hearth_usage_day AS
  SELECT to_timestamp(t0 / 1000.0)::date AS day, instance, key_id, team_id, user_id, end_user, model,
    count(*) AS n, count(*) FILTER (WHERE status >= 400 OR finish IN ('failed', 'engine_crash', 'crash')) AS n_failed,
    sum(in_tok) AS in_tok, sum(cached_tok) AS cached_tok, sum(out_tok) AS out_tok, sum(cost_nusd) / 1e9 AS usd
  FROM hearth_request GROUP BY 1, 2, 3, 4, 5, 6, 7;
