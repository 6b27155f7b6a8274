-- `body` is the whole entry as JSON; the columns are what it is found by. `name` is empty when the
-- entry has none, or is archived and has given it back. `of_id` is the entry that it belongs to.
CREATE TABLE entries (
    tenant_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    id INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    name TEXT,
    handle TEXT,
    of_id INTEGER,
    archived INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (tenant_id, kind, id)
) STRICT;

CREATE UNIQUE INDEX entries_by_name ON entries (tenant_id, kind, name) WHERE name IS NOT NULL;
CREATE UNIQUE INDEX entries_by_handle ON entries (kind, handle) WHERE handle IS NOT NULL;
CREATE INDEX entries_of ON entries (tenant_id, kind, of_id, id) WHERE of_id IS NOT NULL;

-- `of` is what is numbered: run or session.
CREATE TABLE numbers (
    tenant_id TEXT NOT NULL,
    of TEXT NOT NULL,
    number INTEGER NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (tenant_id, of, number)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX numbers_by_id ON numbers (tenant_id, of, id);

-- The last id or number given, for all tenants together: no two of them have one in common.
CREATE TABLE counters (
    kind TEXT PRIMARY KEY,
    last INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
