-- works with: 1

-- Who is there. Neither table is logged: after a crash of the server they are empty, and the nodes
-- announce themselves again.
CREATE UNLOGGED TABLE perdure.members (
    id text COLLATE "C" PRIMARY KEY,
    card bytea NOT NULL,
    seen_at bigint NOT NULL,
    lifetime_ms bigint NOT NULL
);

-- One row for each node that a message is for, until that node takes it.
CREATE UNLOGGED TABLE perdure.messages (
    addressee text COLLATE "C" NOT NULL,
    sent_at bigint NOT NULL,
    body bytea NOT NULL
);

ALTER TABLE perdure.messages ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE INDEX messages_of ON perdure.messages (addressee, sent_at);
