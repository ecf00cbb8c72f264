-- Budgets that keys and teams share. Version 4.
CREATE TABLE budget(
  id TEXT PRIMARY KEY,
  spec TEXT NOT NULL,
  created INTEGER NOT NULL,
  deleted INTEGER
) STRICT;

-- Ids of the budgets that a request counted for, as a JSON array; NULL: none.
ALTER TABLE request ADD COLUMN budgets TEXT;

-- As usage_day, for each of a row's budgets.
CREATE TABLE usage_budget(
  day INTEGER NOT NULL,
  budget_id TEXT NOT NULL,
  tok INTEGER NOT NULL,
  cost_nusd INTEGER NOT NULL,
  PRIMARY KEY(day, budget_id)
) STRICT, WITHOUT ROWID;
