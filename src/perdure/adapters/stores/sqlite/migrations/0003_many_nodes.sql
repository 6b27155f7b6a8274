-- `generation` is the newest schema in the log or the inbox. `known` is how many unconsumed entries
-- the owner knows of. `incarnation` is when the store was distrusted last: a session is suspect while
-- `trusted` is behind it; `trusts` is what it was when the session was claimed.
ALTER TABLE sessions ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN known INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN trusted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN trusts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE identity ADD COLUMN incarnation INTEGER NOT NULL DEFAULT 0;

-- Why nothing came of a consumed command; empty if something did.
ALTER TABLE inbox ADD COLUMN refusal BLOB;
