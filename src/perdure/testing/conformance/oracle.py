"""What a store should answer, said a second time and in the plainest way: dictionaries and loops.

It was written from the port's text and shares no code with any driver. Time is given to it.
"""

from __future__ import annotations

from typing import Any

from perdure.core.codec import Record, genesis
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.ports.session_store import InboxEntry, RunQuery, StepCommit, Token

Outcome = Any
"""A result as plain data, or the name of an error."""


class Oracle:
    """A store in which nothing ever happens at the same time. Its methods are those of the port."""

    def __init__(self, inbox_entries_max: int) -> None:
        self.inbox_entries_max = inbox_entries_max
        self.facts: dict[SessionId, dict[str, Any]] = {}
        self.lease_ends: dict[str, int] = {}
        self.run_rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.distrusted = 0

    def accept(
        self, entry: InboxEntry, row: RunRow | None, now: int, generation: int = 0
    ) -> Outcome:
        facts = self.facts.get(entry.session)
        if facts is not None and entry.id in facts["ever"]:
            return "duplicate" if facts["ever"][entry.id] == entry.command else "KeyReused"
        full = facts is not None and len(facts["waiting"]) >= self.inbox_entries_max
        if full and row is not None:
            return "LimitExceeded"
        if facts is None:
            facts = self.facts[entry.session] = {
                "epoch": 0, "token": None, "owner": None, "open_claim": False, "strikes": 0,
                "quarantine": None, "records": [], "snapshot": (0, None), "ever": {},
                "waiting": [], "wake_at": None, "generation": 0, "known": 0, "answers": {},
                "trusted": self.distrusted, "trusted_next": self.distrusted,
            }  # fmt: skip
        facts["ever"][entry.id] = entry.command
        facts["waiting"].append(entry)
        facts["generation"] = max(facts["generation"], generation)
        if facts["wake_at"] is None or facts["wake_at"] > now:
            facts["wake_at"] = now
        self._upsert([] if row is None else [row])
        return "accepted"

    def claim(
        self, session: SessionId, owner: str, nonce: str, now: int, reads: int | None = None
    ) -> Outcome:
        facts = self.facts.get(session)
        if facts is None:
            return ("absent", None)
        if facts["quarantine"] is not None:
            return ("quarantined", None)
        if facts["owner"] not in (None, owner) and self._alive(facts["owner"], now):
            return ("held", facts["owner"])
        if reads is not None and reads < facts["generation"]:
            return ("newer", None)
        if facts["open_claim"] and facts["owner"] != owner:
            facts["strikes"] += 1
        facts["epoch"] += 1
        facts.update(open_claim=True, owner=owner, token=(facts["epoch"], nonce))
        facts.update(known=len(facts["waiting"]), trusted_next=self.distrusted)
        return (facts["token"], self.load(session))

    def load(self, session: SessionId) -> Outcome:
        facts = self.facts.get(session)
        if facts is None:
            return None
        version, snapshot = facts["snapshot"]
        return {
            "session": session,
            "version": len(facts["records"]),
            "head": facts["records"][-1].hash if facts["records"] else genesis(session),
            "snapshot": snapshot,
            "tail": tuple(r for r in facts["records"] if r.seq > version),
            "inbox": tuple(facts["waiting"]),
            "strikes": facts["strikes"],
            "quarantine": facts["quarantine"],
            "suspect": None if facts["trusted"] == self.distrusted else self.distrusted,
        }

    def token(self, session: SessionId) -> Token | None:
        token = self.facts[session]["token"] if session in self.facts else None
        return None if token is None else Token(*token)

    def commits(self, steps: list[StepCommit]) -> list[Outcome]:
        """Say what becomes of steps that are submitted before anybody is told anything."""
        outcomes: list[Outcome] = []
        broken: dict[Any, str] = {}
        for step in steps:
            claim = (step.session, step.token)
            outcome = broken.get(claim) or self._write(step)
            if outcome != "written":
                broken[claim] = outcome
            outcomes.append(outcome)
        return outcomes

    def renew(self, owner: str, lease_ms: int, now: int) -> Outcome:
        in_time = owner not in self.lease_ends or self._alive(owner, now)
        if not in_time:
            for facts in self.facts.values():
                if facts["owner"] == owner:
                    struck = facts["strikes"]
                    facts.update(owner=None, token=None, open_claim=struck > 0)
                    facts.update(strikes=max(0, struck - 1))
        self.lease_ends[owner] = now + lease_ms
        return in_time

    def release(
        self,
        session: SessionId,
        token: Token | None,
        snapshot: tuple[int, bytes] | None,
        quarantine: str | None,
    ) -> Outcome:
        facts = self.facts.get(session)
        if token is not None and (facts is None or facts["token"] != token):
            return "Fenced"
        if facts is None:
            return "NotFound"
        if snapshot and facts["snapshot"][0] < snapshot[0] <= len(facts["records"]):
            facts["snapshot"] = snapshot
        facts.update(owner=None, token=None, quarantine=quarantine)
        if quarantine is None:
            facts.update(open_claim=False, strikes=0)
        return "released"

    def due(self, at: int, now: int, reads: int | None = None) -> Outcome:
        """Return when each session that is due fell due, and the time of the next one."""
        nobody_runs = {
            session: facts["wake_at"]
            for session, facts in self.facts.items()
            if facts["wake_at"] is not None
            and facts["quarantine"] is None
            and (reads is None or facts["generation"] <= reads)
            and not (facts["owner"] is not None and self._alive(facts["owner"], now))
        }
        later = [wake_at for wake_at in nobody_runs.values() if wake_at > at]
        ready = {session: when for session, when in nobody_runs.items() if when <= at}
        return ready, min(later) if later else None

    def unread(self, owner: str) -> set[SessionId]:
        return {
            session
            for session, facts in self.facts.items()
            if facts["owner"] == owner and len(facts["waiting"]) > facts["known"]
        }

    def settled(self, session: SessionId, id: str) -> Outcome:
        facts = self.facts.get(session)
        if facts is None or id not in facts["ever"]:
            return None
        waits = any(entry.id == id for entry in facts["waiting"])
        return None if waits else {"refusal": facts["answers"].get(id, b"")}

    def distrust(self, now: int) -> None:
        self.distrusted = now if now > self.distrusted else self.distrusted + 1

    def read(self, session: SessionId, after: int, limit: int) -> list[Record]:
        records = self.facts[session]["records"] if session in self.facts else []
        return [record for record in records if record.seq > after][:limit]

    def list(self, query: RunQuery) -> list[dict[str, Any]]:
        wanted = {"id": query.run, "agent": query.agent, "key": query.key, "status": query.status}
        found = []
        for (tenant, _), row in self.run_rows.items():
            parts = {**row, "agent": row["session"].agent, "key": row["session"].key}
            matches = all(want is None or parts[name] == want for name, want in wanted.items())
            before = query.before is None or (row["created_at"], row["id"]) < query.before
            if tenant == query.tenant and matches and before:
                found.append(row)
        return sorted(found, key=lambda r: (r["created_at"], r["id"]), reverse=True)[: query.limit]

    def void_claims(self) -> None:
        """Forget who owned what, as when the only process that could have is gone."""
        self.lease_ends.clear()
        for facts in self.facts.values():
            facts.update(owner=None, token=None)

    def _alive(self, owner: str, now: int) -> bool:
        return owner in self.lease_ends and now < self.lease_ends[owner]

    def _write(self, step: StepCommit) -> Outcome:
        facts = self.facts.get(step.session)
        if facts is None or facts["token"] != step.token:
            return "Fenced"
        there = len(facts["records"])
        waiting = {entry.id for entry in facts["waiting"]}
        if step.expected != there:
            return "Conflict"
        for position, record in enumerate(step.records):
            if record.seq != there + position + 1:
                return "Conflict"
        for name in step.consumed:
            if name not in waiting:
                return "Conflict"
            waiting.remove(name)
        facts["records"] = facts["records"] + list(step.records)
        facts["waiting"] = [entry for entry in facts["waiting"] if entry.id in waiting]
        facts["known"] = step.postponed
        facts["answers"].update(dict(step.refusals))
        facts["generation"] = max(facts["generation"], step.generation)
        facts["wake_at"] = 0 if len(waiting) > step.postponed else step.wake_at
        if step.records:
            facts["strikes"] = 0
            facts["trusted"] = facts["trusted_next"]
        if step.snapshot is not None:
            facts["snapshot"] = (len(facts["records"]), step.snapshot)
        self._upsert(step.rows)
        for address, content in step.blobs:
            self.contents.setdefault(address, content)
        return "written"

    def _upsert(self, rows: Any) -> None:
        for row in rows:
            place = (row.session.tenant, row.id)
            fresh = {name: getattr(row, name) for name in row.__struct_fields__}
            if place in self.run_rows:
                fresh["created_at"] = self.run_rows[place]["created_at"]
            self.run_rows[place] = fresh
