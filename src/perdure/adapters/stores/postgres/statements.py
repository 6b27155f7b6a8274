"""Every statement that writes. Each takes columns, is one transaction, and says what it did.

A statement never trusts what was read before it: the update of a session's row compares token and
version once more after it has waited for the row. What hangs on a row that was not updated is left
out by `(... IN (SELECT ... FROM held)) IS TRUE`, which the planner always answers from a hash.
"""

from __future__ import annotations

from perdure.adapters.postgres.found import TOLD

NOW = "coalesce({}::bigint, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)"
"""The time in milliseconds: the server's own, unless a test says what time it is."""

KEEP_ROWS = """
ON CONFLICT (tenant_id, id) DO UPDATE SET
    agent = excluded.agent, key = excluded.key, status = excluded.status, row = excluded.row
"""

_STEPS = """
step AS MATERIALIZED (
    SELECT * FROM unnest(
        $1::text[], $2::uuid[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bytea[],
        $8::integer[], $9::integer[], $10::bigint[], $11::integer[]
    ) AS step (tenant_id, id, epoch, nonce, expected, version, head,
        used, postponed, wake_at, generation)
)"""
_HELD = """
held AS (
    UPDATE perdure.sessions SET
        version = step.version,
        head = coalesce(step.head, sessions.head),
        claims = CASE WHEN step.version > sessions.version THEN 1 ELSE sessions.claims END,
        trusted = CASE WHEN step.version > sessions.version
            THEN sessions.trusts ELSE sessions.trusted END,
        unconsumed = sessions.unconsumed - step.used,
        known = step.postponed,
        unread = sessions.unconsumed - step.used > step.postponed,
        wake_at = CASE WHEN sessions.unconsumed - step.used > step.postponed
            THEN 0 ELSE step.wake_at END,
        generation = greatest(sessions.generation, step.generation)
    FROM step
    WHERE sessions.tenant_id = step.tenant_id AND sessions.id = step.id
    AND sessions.epoch = step.epoch AND sessions.nonce = step.nonce
    AND sessions.version = step.expected
    AND ({settled})
    RETURNING sessions.id
)"""
_APPENDED = """
appended AS (
    INSERT INTO perdure.events (tenant_id, session, seq, body, hash)
    SELECT * FROM unnest($12::text[], $13::uuid[], $14::bigint[], $15::bytea[], $16::bytea[])
        AS event (tenant_id, session, seq, body, hash)
    WHERE (session IN (SELECT id FROM held)) IS TRUE
)"""
_WAITING = """
waiting AS (
    SELECT used.session, count(*)::integer AS used
    FROM unnest($17::text[], $18::uuid[], $19::text[]) AS used (tenant_id, session, id)
    JOIN perdure.inbox USING (tenant_id, session, id)
    WHERE inbox.command IS NOT NULL
    GROUP BY used.session
)"""
_THE_REST = f"""
consumed AS (
    UPDATE perdure.inbox SET command = NULL, refusal = used.refusal
    FROM unnest($17::text[], $18::uuid[], $19::text[], $20::bytea[])
        AS used (tenant_id, session, id, refusal)
    WHERE inbox.tenant_id = used.tenant_id AND inbox.session = used.session AND inbox.id = used.id
    AND (used.session IN (SELECT id FROM held)) IS TRUE
), rows AS (
    INSERT INTO perdure.runs (tenant_id, id, agent, key, status, created_at, row)
    SELECT tenant_id, id, agent, key, status, created_at, row
    FROM unnest($21::uuid[], $22::text[], $23::text[], $24::text[], $25::text[], $26::text[],
        $27::bigint[], $28::bytea[])
        AS run (session, tenant_id, id, agent, key, status, created_at, row)
    WHERE (session IN (SELECT id FROM held)) IS TRUE
    {KEEP_ROWS}
), snapshots AS (
    INSERT INTO perdure.snapshots (tenant_id, session, version, body)
    SELECT * FROM unnest($29::text[], $30::uuid[], $31::bigint[], $32::bytea[])
        AS taken (tenant_id, session, version, body)
    WHERE (session IN (SELECT id FROM held)) IS TRUE
    ON CONFLICT (tenant_id, session) DO UPDATE SET
        version = excluded.version, body = excluded.body
), blobs AS (
    INSERT INTO perdure.blobs (address, body)
    SELECT address, body FROM unnest($33::uuid[], $34::text[], $35::bytea[])
        AS blob (session, address, body)
    WHERE (session IN (SELECT id FROM held)) IS TRUE
    ON CONFLICT DO NOTHING
)"""
_WRITTEN = """
SELECT CASE WHEN count(*) < cardinality($2) THEN coalesce(array_agg(id), '{}') END FROM held
"""

COMMIT_RECORDS = f"WITH {_STEPS}, {_HELD.format(settled='step.used = 0')}, {_APPENDED} {_WRITTEN}"
"""Steps that are nothing but records: what most of a run consists of."""

_SETTLED = "step.used = 0 OR (step.id, step.used) IN (SELECT session, used FROM waiting)"
COMMIT = (
    f"WITH {_STEPS}, {_WAITING}, {_HELD.format(settled=_SETTLED)}, {_APPENDED}, {_THE_REST} "
    f"{_WRITTEN}"
)
"""Any steps. The answer is NULL if all were written, and else the sessions whose steps were."""

STANDING = """
SELECT sessions.epoch, sessions.nonce, sessions.version, events.hash,
    (SELECT count(*) FROM perdure.inbox WHERE inbox.tenant_id = sessions.tenant_id
        AND inbox.session = sessions.id AND inbox.id = ANY ($4::text[]) AND command IS NULL) AS used
FROM perdure.sessions LEFT JOIN perdure.events
    ON events.tenant_id = sessions.tenant_id AND events.session = sessions.id AND events.seq = $3
WHERE sessions.tenant_id = $1 AND sessions.id = $2
"""

ACCEPT = f"""
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest(
        $1::text[], $2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::bytea[],
        $8::bytea[], $9::bigint[], $10::integer[]
    ) WITH ORDINALITY AS asked (tenant_id, session, agent, key, genesis, id, digest, command,
        accepted_at, generation, n)
), known AS (
    SELECT asked.n, inbox.digest = asked.digest AS same
    FROM asked JOIN perdure.inbox USING (tenant_id, session, id)
), fresh AS MATERIALIZED (
    SELECT *, count(*) OVER of_session AS together, row_number() OVER (of_session ORDER BY n) AS nth
    FROM asked WHERE (n IN (SELECT n FROM known)) IS NOT TRUE
    WINDOW of_session AS (PARTITION BY session)
), opened AS (
    INSERT INTO perdure.sessions AS sessions (tenant_id, id, agent, key, head, accepted, unconsumed,
        wake_at, due_at, generation, trusted)
    SELECT tenant_id, session, min(agent), min(key), (array_agg(genesis))[1], count(*), count(*),
        {NOW.format("$12")}, {NOW.format("$12")}, max(generation),
        (SELECT incarnation FROM perdure.store)
    FROM fresh GROUP BY tenant_id, session HAVING count(*) <= $11 ORDER BY tenant_id, session
    ON CONFLICT (tenant_id, id) DO UPDATE SET
        accepted = sessions.accepted + excluded.accepted,
        unconsumed = sessions.unconsumed + excluded.unconsumed,
        unread = sessions.owner IS NOT NULL
            AND sessions.unconsumed + excluded.unconsumed > sessions.known,
        wake_at = least(sessions.wake_at, excluded.wake_at),
        due_at = CASE WHEN sessions.owner IS NULL AND sessions.quarantine IS NULL
            THEN least(sessions.wake_at, excluded.wake_at) END,
        generation = greatest(sessions.generation, excluded.generation)
    WHERE sessions.unconsumed + excluded.unconsumed <= $11
    RETURNING id, accepted
), put AS (
    INSERT INTO perdure.inbox (tenant_id, session, id, number, digest, command, accepted_at)
    SELECT fresh.tenant_id, fresh.session, fresh.id, opened.accepted - fresh.together + fresh.nth,
        fresh.digest, fresh.command, fresh.accepted_at
    FROM fresh JOIN opened ON opened.id = fresh.session
), written AS (
    SELECT n FROM fresh WHERE (session IN (SELECT id FROM opened)) IS TRUE
), rows AS (
    INSERT INTO perdure.runs (tenant_id, id, agent, key, status, created_at, row)
    SELECT tenant_id, id, agent, key, status, created_at, row
    FROM unnest($13::bigint[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[],
        $19::bigint[], $20::bytea[])
        AS run (n, tenant_id, id, agent, key, status, created_at, row)
    WHERE (n IN (SELECT n FROM written)) IS TRUE
    {KEEP_ROWS}
)
SELECT n, NULL AS same FROM written UNION ALL SELECT n, same FROM known
"""

LOADED = """
    {0}.tenant_id, {0}.id, {0}.epoch, {0}.version, {0}.head, {0}.claims, {0}.quarantine,
    {0}.unconsumed, snapshots.version AS snapshot_version, snapshots.body AS snapshot,
    (SELECT incarnation FROM perdure.store WHERE {0}.trusted < incarnation) AS suspect,
    tail.seqs, tail.bodies, tail.hashes, inbox.ids, inbox.commands, inbox.times
FROM {0} LEFT JOIN perdure.snapshots
    ON snapshots.tenant_id = {0}.tenant_id AND snapshots.session = {0}.id
CROSS JOIN LATERAL (
    SELECT array_agg(seq) AS seqs, array_agg(body) AS bodies, array_agg(hash) AS hashes FROM (
        SELECT seq, body, hash FROM perdure.events
        WHERE events.tenant_id = {0}.tenant_id AND events.session = {0}.id
        AND events.seq > coalesce(snapshots.version, 0) ORDER BY events.seq
    ) AS event
) AS tail
CROSS JOIN LATERAL (
    SELECT array_agg(waits.id) AS ids, array_agg(waits.command) AS commands,
        array_agg(waits.accepted_at) AS times
    FROM (
        SELECT id, command, accepted_at FROM perdure.inbox
        WHERE inbox.tenant_id = {0}.tenant_id AND inbox.session = {0}.id
        AND inbox.command IS NOT NULL ORDER BY inbox.number
    ) AS waits
) AS inbox
"""

LOAD = f"""
WITH session AS (SELECT * FROM perdure.sessions WHERE tenant_id = $1 AND id = $2)
SELECT {LOADED.format("session")}
"""

CLAIM = f"""
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::integer[],
        $6::integer[])
        AS asked (tenant_id, id, owner, nonce, strikes_max, reads)
), gone AS MATERIALIZED (
    -- Owners whose lease has run out. They are locked, so that none of them renews it meanwhile.
    SELECT owner FROM perdure.nodes
    WHERE owner IN (
        SELECT sessions.owner FROM asked JOIN perdure.sessions USING (tenant_id, id)
        WHERE sessions.owner <> asked.owner
    ) AND coalesce(lease_until, 0) <= {NOW.format("$7")}
    ORDER BY owner FOR UPDATE
), absent AS MATERIALIZED (
    -- Owners that never renewed a lease. A row that is waited for may get one that is new since.
    SELECT sessions.owner FROM asked JOIN perdure.sessions USING (tenant_id, id)
    WHERE sessions.owner <> asked.owner
    AND NOT EXISTS (SELECT FROM perdure.nodes WHERE nodes.owner = sessions.owner)
), taken AS (
    UPDATE perdure.sessions SET
        epoch = sessions.epoch + 1,
        nonce = asked.nonce,
        owner = asked.owner,
        claims = CASE WHEN sessions.owner = asked.owner
            THEN greatest(sessions.claims, 1) ELSE sessions.claims + 1 END,
        known = sessions.unconsumed,
        unread = false,
        due_at = NULL,
        trusts = (SELECT incarnation FROM perdure.store)
    FROM asked
    WHERE sessions.tenant_id = asked.tenant_id AND sessions.id = asked.id
    AND sessions.quarantine IS NULL
    AND (asked.strikes_max IS NULL OR asked.strikes_max
        >= sessions.claims - CASE WHEN sessions.owner = asked.owner THEN 1 ELSE 0 END)
    AND (asked.reads IS NULL OR sessions.generation <= asked.reads)
    AND (
        sessions.owner IS NULL OR sessions.owner = asked.owner
        OR sessions.owner IN (SELECT owner FROM gone)
        OR sessions.owner IN (SELECT owner FROM absent)
    )
    RETURNING sessions.*
), node AS (
    INSERT INTO perdure.nodes (owner) SELECT DISTINCT owner FROM asked ORDER BY owner
    ON CONFLICT DO NOTHING
)
SELECT {LOADED.format("taken")}
"""

HOLDER = f"""
SELECT owner, quarantine, generation, claims, EXISTS (
    SELECT FROM perdure.nodes
    WHERE nodes.owner = sessions.owner AND lease_until > {NOW.format("$3")}
) AS alive
FROM perdure.sessions WHERE tenant_id = $1 AND id = $2
"""

RELEASE = """
WITH asked AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::text[], $5::text[],
        $6::bigint[], $7::bytea[])
        AS asked (tenant_id, id, epoch, nonce, quarantine, version, snapshot)
), freed AS (
    UPDATE perdure.sessions SET
        owner = NULL,
        nonce = NULL,
        unread = false,
        quarantine = asked.quarantine,
        claims = CASE WHEN asked.quarantine IS NULL THEN 0 ELSE sessions.claims END,
        due_at = CASE WHEN asked.quarantine IS NULL THEN sessions.wake_at END
    FROM asked
    WHERE sessions.tenant_id = asked.tenant_id AND sessions.id = asked.id
    AND (asked.epoch IS NULL OR (sessions.epoch = asked.epoch AND sessions.nonce = asked.nonce))
    RETURNING sessions.tenant_id, sessions.id, sessions.version, asked.version AS taken_at,
        asked.snapshot
), kept AS (
    INSERT INTO perdure.snapshots AS snapshots (tenant_id, session, version, body)
    SELECT tenant_id, id, taken_at, snapshot FROM freed
    WHERE snapshot IS NOT NULL AND taken_at BETWEEN 1 AND version
    ON CONFLICT (tenant_id, session) DO UPDATE SET
        version = excluded.version, body = excluded.body
    WHERE snapshots.version < excluded.version
)
SELECT id FROM freed
"""

RENEW = f"""
WITH before AS MATERIALIZED (
    SELECT lease_until, {NOW.format("$3")} AS now FROM perdure.nodes WHERE owner = $1 FOR UPDATE
), renewed AS (
    INSERT INTO perdure.nodes (owner, lease_until) VALUES ($1, {NOW.format("$3")} + $2::bigint)
    ON CONFLICT (owner) DO UPDATE SET lease_until = excluded.lease_until
), void AS (
    UPDATE perdure.sessions SET
        owner = NULL,
        nonce = NULL,
        unread = false,
        claims = greatest(0, claims - 1),
        due_at = CASE WHEN quarantine IS NULL THEN wake_at END
    WHERE owner = $1 AND EXISTS (SELECT FROM before WHERE lease_until <= now)
)
SELECT EXISTS (SELECT FROM before WHERE lease_until <= now) AS run_out, {TOLD}
"""
"""What a commit is worth can be set while the server runs: it is told with every renewal."""

DISTRUST = f"""
UPDATE perdure.store SET incarnation = greatest({NOW.format("$1")}, incarnation + 1)
"""

GREET = f"""
UPDATE perdure.store SET
    lineage = $1,
    durability = $2,
    incarnation = CASE WHEN lineage <> $1 AND durability NOT LIKE 'replicated%'
        THEN greatest({NOW.format("$3")}, incarnation + 1) ELSE incarnation END
WHERE lineage IS DISTINCT FROM $1 OR durability IS DISTINCT FROM $2
"""
"""What is written on another line of history may be less than what was acknowledged before."""

FORGET_NODES = f"""
DELETE FROM perdure.nodes WHERE lease_until < {NOW.format("$1")} - $2::bigint
AND NOT EXISTS (SELECT FROM perdure.sessions WHERE sessions.owner = nodes.owner)
"""
