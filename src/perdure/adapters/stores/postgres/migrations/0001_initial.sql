-- works with: 1

-- One row: what no other store has; on which line of history it was written last, and what an
-- acknowledgement was worth there; when it was distrusted last, in milliseconds since 1970.
CREATE TABLE perdure.store (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    identity text NOT NULL,
    lineage text,
    durability text,
    incarnation bigint NOT NULL
);

INSERT INTO perdure.store (identity, incarnation)
VALUES (replace(gen_random_uuid()::text, '-', ''), 0);

-- One row per session; `id` is a hash of its names. `nonce` is empty while nobody has the right to
-- write; `claims` counts those since the last release or progress; `accepted` counts all commands
-- ever, `unconsumed` those that wait, `known` those of them that the owner knows, and `unread` says
-- whether there are more. `trusted` is the store's incarnation at the last progress, `trusts` the
-- one at the present claim.
--
-- `wake_at` is what the last commit said. `due_at` is the same while nobody owns the session, and
-- empty otherwise: a commit changes nothing that is in an index, so that it stays in its page.
CREATE TABLE perdure.sessions (
    tenant_id text COLLATE "C" NOT NULL,
    id uuid NOT NULL,
    agent text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    owner text COLLATE "C",
    epoch bigint NOT NULL DEFAULT 0,
    nonce text COLLATE "C",
    claims integer NOT NULL DEFAULT 0,
    quarantine text,
    version bigint NOT NULL DEFAULT 0,
    head bytea NOT NULL,
    accepted bigint NOT NULL,
    unconsumed integer NOT NULL,
    known integer NOT NULL DEFAULT 0,
    unread boolean NOT NULL DEFAULT false,
    wake_at bigint,
    due_at bigint,
    generation integer NOT NULL,
    trusted bigint NOT NULL,
    trusts bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 60);

CREATE INDEX sessions_due ON perdure.sessions (agent, due_at) WHERE due_at IS NOT NULL;

CREATE INDEX sessions_owned ON perdure.sessions (owner) WHERE owner IS NOT NULL;

CREATE INDEX sessions_unread ON perdure.sessions (owner) WHERE unread;

CREATE TABLE perdure.events (
    tenant_id text COLLATE "C" NOT NULL,
    session uuid NOT NULL,
    seq bigint NOT NULL,
    body bytea NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (tenant_id, session, seq)
);

-- `number` is the order of acceptance within the session. A consumed row loses its command and
-- stays for ever, with the reason if it was refused.
CREATE TABLE perdure.inbox (
    tenant_id text COLLATE "C" NOT NULL,
    session uuid NOT NULL,
    id text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    digest bytea NOT NULL,
    command bytea,
    refusal bytea,
    accepted_at bigint NOT NULL,
    PRIMARY KEY (tenant_id, session, id)
);

CREATE INDEX inbox_unconsumed ON perdure.inbox (tenant_id, session, number)
WHERE command IS NOT NULL;

CREATE TABLE perdure.snapshots (
    tenant_id text COLLATE "C" NOT NULL,
    session uuid NOT NULL,
    version bigint NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (tenant_id, session)
);

-- `row` is the whole run row as JSON; the columns are what it is found by. `created_at` is that of
-- the first write and wins over the one in the JSON.
CREATE TABLE perdure.runs (
    tenant_id text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    agent text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    row bytea NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

CREATE INDEX runs_newest ON perdure.runs (tenant_id, created_at, id);

CREATE INDEX runs_of_session ON perdure.runs (tenant_id, agent, key, created_at, id);

CREATE INDEX runs_with_status ON perdure.runs (tenant_id, status, created_at, id);

-- Addressed by content, so that tenants may share them.
CREATE TABLE perdure.blobs (
    address text COLLATE "C" PRIMARY KEY,
    body bytea NOT NULL
);

-- Whoever claimed or renewed; `lease_until` is empty before a renewal.
CREATE TABLE perdure.nodes (
    owner text COLLATE "C" PRIMARY KEY,
    lease_until bigint
);
