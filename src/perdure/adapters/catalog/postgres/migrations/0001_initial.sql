-- works with: 1

-- `body` is the entry as JSON, without what the columns say of it. `name` is empty when the entry
-- has none, or is archived and has given it back. `of_id` is the entry that it belongs to.
CREATE TABLE perdure.entries (
    tenant_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    id bigint NOT NULL,
    revision bigint NOT NULL,
    inserted_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    name text COLLATE "C",
    handle text COLLATE "C",
    of_id bigint,
    archived boolean NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (tenant_id, kind, id)
);

CREATE UNIQUE INDEX entries_by_name ON perdure.entries (tenant_id, kind, name)
WHERE name IS NOT NULL;

CREATE UNIQUE INDEX entries_by_handle ON perdure.entries (kind, handle) WHERE handle IS NOT NULL;

CREATE INDEX entries_of ON perdure.entries (tenant_id, kind, of_id, id) WHERE of_id IS NOT NULL;

-- `of` is what is numbered: run or session.
CREATE TABLE perdure.numbers (
    tenant_id text COLLATE "C" NOT NULL,
    of text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (tenant_id, of, id)
);

CREATE UNIQUE INDEX numbers_by_number ON perdure.numbers (tenant_id, of, number);

-- The last id or number given, for all tenants together: no two of them have one in common.
CREATE TABLE perdure.counters (
    kind text COLLATE "C" PRIMARY KEY,
    last bigint NOT NULL
);
