-- One row per session. `nonce` is empty while nobody has the right to write; `claims` counts those
-- since the last release or progress; `unconsumed` counts the inbox rows that still have a command.
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    agent TEXT NOT NULL,
    key TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    nonce TEXT,
    version INTEGER NOT NULL,
    head BLOB NOT NULL,
    unconsumed INTEGER NOT NULL,
    wake_at INTEGER,
    owner TEXT,
    claims INTEGER NOT NULL,
    quarantine TEXT,
    UNIQUE (tenant, agent, key)
) STRICT;

-- A commit changes neither: the session that it writes is owned.
CREATE INDEX sessions_due ON sessions (wake_at)
WHERE owner IS NULL AND quarantine IS NULL AND wake_at IS NOT NULL;

CREATE INDEX sessions_owned ON sessions (owner) WHERE owner IS NOT NULL;

-- Not WITHOUT ROWID: rows of 1 KB would take 2.4 times the bytes.
CREATE TABLE events (
    session INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    body BLOB NOT NULL,
    hash BLOB NOT NULL,
    UNIQUE (session, seq)
) STRICT;

-- `number` is the order of acceptance. A consumed row loses its command and stays for ever.
CREATE TABLE inbox (
    number INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    id TEXT NOT NULL,
    digest BLOB NOT NULL,
    command BLOB,
    accepted_at INTEGER NOT NULL,
    UNIQUE (session, id)
) STRICT;

CREATE INDEX inbox_unconsumed ON inbox (session, number) WHERE command IS NOT NULL;

CREATE TABLE snapshots (
    session INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;

-- `row` is the whole run row as JSON; the columns are what it is found by. `created_at` is that of
-- the first write and wins over the one in the JSON.
CREATE TABLE runs (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    agent TEXT NOT NULL,
    key TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    row BLOB NOT NULL,
    UNIQUE (tenant, id)
) STRICT;

CREATE INDEX runs_newest ON runs (tenant, created_at, id);
CREATE INDEX runs_of_session ON runs (tenant, agent, key, created_at, id);
CREATE INDEX runs_with_status ON runs (tenant, status, created_at, id);

-- Addressed by content, so that tenants may share them; see payloads.py for the bytes.
CREATE TABLE blobs (
    address TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL
) STRICT;

-- What no other store has: idempotency keys are derived from it.
CREATE TABLE identity (id TEXT NOT NULL) STRICT;
INSERT INTO identity VALUES (lower(hex(randomblob(16))));

-- Whoever claimed or renewed since the store was opened; `lease_until` is empty before a renewal.
CREATE TABLE nodes (
    owner TEXT PRIMARY KEY,
    lease_until INTEGER
) STRICT, WITHOUT ROWID;
