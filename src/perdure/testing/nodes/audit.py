"""The auditor: it folds every log of a store, and holds it against ledger and traces.

Three witnesses that do not know each other: the logs as the store gives them, the ledger that the
far ends wrote at the moment of each effect, and the traces in which each node noted its claims and
its steps. What must not be is the table `VIOLATIONS`, and that of the judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from perdure.core.codec import genesis, link
from perdure.testing.judge import Found, judge
from perdure.testing.nodes.recorder import Trace
from perdure.testing.witness import Line, Seen, Store

VIOLATIONS = {
    "stale_commits": "commits on a base that was not their own",
    "epoch_regressions": "epochs that go back along a log",
    "tokens_given_twice": "tokens that were given twice",
    "epochs_given_twice": "epochs that were given twice",
    "strange_events": "events that nobody submitted",
    "lost_commits": "acknowledged commits lost",
    "refused_and_written": "commits refused and written all the same",
    "lost_messages": "accepted messages lost",
    "leases_kept": "leases kept by a loop that stood still",
    "nodes_stuck": "nodes that did not come back to work",
}
FORGIVEN = {
    "lost_commits", "lost_messages", "epochs_given_twice", "lost_acknowledged", "missing_effects",
    "calls_before_intent", "once_calls_repeated", "divergent_ends",
}  # fmt: skip
"""What may be missing after a store has lost what it had. That something happens twice is not."""
REFUSALS = ("Fenced", "Conflict")
Key = tuple[str, int, str]
"""A session, a position in its log, and the hash of the log there."""


class Stall(NamedTuple):
    """When the loop of a node stood still, for much longer than its lease."""

    node: str
    began: float
    ended: float


class Counts(NamedTuple):
    """What the traces say; the first names are those of `VIOLATIONS`."""

    stale_commits: int = 0
    epoch_regressions: int = 0
    tokens_given_twice: int = 0
    epochs_given_twice: int = 0
    strange_events: int = 0
    lost_commits: int = 0
    refused_and_written: int = 0
    lost_messages: int = 0
    leases_kept: int = 0
    nodes_stuck: int = 0
    claims: int = 0
    takeovers: int = 0
    fenced: int = 0
    in_doubt: int = 0


class Audit(NamedTuple):
    """What the auditor found in one store."""

    counts: Counts
    found: Found

    def violations(self) -> list[str]:
        """Return what was wrong, in words."""
        counts = self.counts._asdict()
        mine = [f"{counts[name]} {text}" for name, text in VIOLATIONS.items() if counts[name]]
        return [*mine, *self.found.violations()]


def audit(
    store: Store,
    lines: Sequence[Line],
    traces: Iterable[Trace],
    quiet: Store,
    *,
    identity: str = "",
    forgets: bool = False,
    set_back_at: float = 0.0,
    nodes_stuck: int = 0,
    stalls: Sequence[Stall] = (),
) -> Audit:
    """Hold the witnesses against each other.

    A store that `forgets`, as it was made to, may lack what it had acknowledged. Of one that was
    begun anew only those are heard who worked with the new one; of one that was set back, sessions
    of which nothing was left begin again when they are asked to, and only their logs are judged.
    """
    traces = [*traces]
    if forgets:
        began = [line for _, line in traces if line["what"] == "began"]
        old = {line["pid"] for line in began if line["store"] != identity}
        lines = [line for line in lines if line["pid"] not in old]
        traces = [one for one in traces if one.line["pid"] not in old]
    counts = claims_and_commits(store, traces, stalls)._replace(nodes_stuck=nodes_stuck)
    if forgets:
        kept = _left_over(store, traces, set_back_at) if set_back_at else {*store}
        lines = [line for line in lines if line.get("session") in kept]
        quiet = {name: seen for name, seen in quiet.items() if name in kept}
        store = {name: seen for name, seen in store.items() if name in kept}
    found = judge(lines, (), quiet, store)
    if forgets:
        counts = _forgiven(counts)
        found = _forgiven(found)
    return Audit(counts, found)


def _left_over(store: Store, traces: Iterable[Trace], at: float) -> set[str]:
    """Return the sessions whose first event is one that was written before a time."""
    before = {
        (line["session"], line["hashes"][0])
        for _, line in traces
        if line["what"] == "submitted" and line["expected"] == 0 and line["hashes"]
        if line["at"] < at
    }
    return {
        name
        for name, seen in store.items()
        if seen.records and (name, seen.records[0].hash.hex()) in before
    }


T = TypeVar("T", Counts, Found)


def _forgiven(counts: T) -> T:
    none: dict[str, Any] = {name: 0 for name in counts._fields if name in FORGIVEN}
    return counts._replace(**none)


def claims_and_commits(
    store: Store, traces: Iterable[Trace], stalls: Sequence[Stall] = ()
) -> Counts:
    """Hold only logs and traces against each other."""
    told = _Told(traces)
    kept = sum(told.kept_lease(stall) for stall in stalls)
    return told.counts(store)._replace(leases_kept=kept)


class _Told:
    """The traces, in the order in which they can be asked."""

    def __init__(self, traces: Iterable[Trace]) -> None:
        self.claims: list[Mapping[str, Any]] = []
        self.accepted: set[tuple[str, str]] = set()
        self.consumed: dict[str, set[str]] = {}
        self.by_event: dict[Key, set[tuple[int, str]]] = {}
        self.steps: dict[tuple[str, int], Mapping[str, Any]] = {}
        self.outcomes: dict[tuple[str, int], str | None] = {}
        lines = [*traces]
        self.lines = sorted((line for _, line in lines), key=lambda line: line["at"])
        for life, line in lines:
            what = line["what"]
            if what == "claimed":
                self.claims.append(line)
            elif what == "accepted":
                self.accepted.add((line["session"], line["entry"]))
            elif what == "submitted":
                self.steps[life, line["number"]] = line
                for key in _events(line):
                    self.by_event.setdefault(key, set()).add(tuple(line["token"]))
            elif what == "told":
                self.outcomes[life, line["number"]] = line["error"]

    def counts(self, store: Store) -> Counts:
        """Return what is to be counted."""
        tokens = Counter((one["session"], tuple(one["token"])) for one in self.claims)
        epochs = Counter((one["session"], one["token"][0]) for one in self.claims)
        here = {
            (name, record.seq, record.hash.hex())
            for name, seen in store.items()
            for record in seen.records
        }
        lost, written = 0, 0
        for at, step in self.steps.items():
            events = _events(step)
            there = sum(key in here for key in events)
            outcome = self.outcomes.get(at, "nothing")
            lost += outcome is None and there < len(events)
            if outcome in REFUSALS and there:
                # Unless the same step was written by an earlier submission of it.
                written += not any(
                    other != at and self.outcomes.get(other, "") != outcome
                    for key in events
                    for other in self._submissions(key)
                )
        nodes = Counter(one["node"] for one in self.claims)
        outcomes = Counter(self.outcomes.values())
        return Counts(
            stale_commits=sum(_stale(seen) for seen in store.values()),
            epoch_regressions=sum(self._regressions(name, seen) for name, seen in store.items()),
            tokens_given_twice=sum(n - 1 for n in tokens.values()),
            epochs_given_twice=len(tokens) - len(epochs),
            strange_events=sum(key not in self.by_event for key in here),
            lost_commits=lost,
            refused_and_written=written,
            lost_messages=self._lost_messages(store),
            claims=sum(nodes.values()),
            takeovers=sum(one["strikes"] > 0 for one in self.claims),
            fenced=outcomes["Fenced"] + outcomes["Conflict"],
            in_doubt=outcomes["Unavailable"] + outcomes["Broken"],
        )

    def kept_lease(self, stall: Stall) -> bool:
        """Say whether others left alone what a node had to do while its loop stood still."""
        had: set[str] = set()
        for line in self.lines:
            if line["at"] >= stall.began:
                break
            if line["node"] == stall.node and line["what"] == "claimed":
                had.add(line["session"])
            elif line["node"] == stall.node and line["what"] == "released":
                had.discard(line["session"])
        after = [line for line in self.lines if line["at"] >= stall.began]
        owed = had & {line["session"] for line in after if line["what"] == "submitted"}
        taken = {
            line["session"]
            for line in after
            if line["what"] == "claimed" and line["node"] != stall.node
            if line["at"] < stall.ended
        }
        return bool(owed) and not owed & taken

    def _submissions(self, key: Key) -> Iterable[tuple[str, int]]:
        return (at for at, step in self.steps.items() if key in _events(step))

    def _regressions(self, name: str, seen: Seen) -> int:
        """Count the places where no order of the tokens that wrote a log has growing epochs."""
        epoch, found = 0, 0
        for record in seen.records:
            by = self.by_event.get((name, record.seq, record.hash.hex()), set())
            later = [one for one, _ in by if one >= epoch]
            if later:
                epoch = min(later)
            elif by:
                found += 1
                epoch = min(one for one, _ in by)
        return found

    def _lost_messages(self, store: Store) -> int:
        """Count what was acknowledged and is neither in an inbox nor was consumed by a step."""
        consumed = {
            (step["session"], entry)
            for at, step in self.steps.items()
            if self.outcomes.get(at) not in REFUSALS
            for entry in step["consumed"]
        }
        waiting = {(name, entry) for name, seen in store.items() for entry in seen.inbox}
        return len(self.accepted - consumed - waiting)


def _events(step: Mapping[str, Any]) -> list[Key]:
    return [(step["session"], step["expected"] + n, one) for n, one in enumerate(step["hashes"], 1)]


def _stale(seen: Seen) -> int:
    """Count the events that do not follow from the one before them."""
    head, found = genesis(seen.session), 0
    for seq, record in enumerate(seen.records, 1):
        found += record.seq != seq or link(head, record.body) != record.hash
        head = record.hash
    return found
