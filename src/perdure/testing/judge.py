"""What became of the work: the logs, the ledger and the undisturbed run, held against each other.

The ledger was written by the far ends at the moment of each effect, and the logs were read after
each death: neither knows what the other says. Every count of `Found` that is listed in `WRONG` must
be zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from perdure.core import events as e
from perdure.core.errors import BrokenChain, PerdureError
from perdure.core.export import verify_log
from perdure.core.history import project
from perdure.testing.trace import LeftModel, check_log
from perdure.testing.witness import Kill, Line, Seen, Store

ENDINGS = (e.RunCompleted, e.RunFailed, e.RunCancelled)
OUTCOMES = (e.ToolCallSucceeded, e.ToolCallFailed)
WRONG = {
    "re_executed_calls": "completed calls made again",
    "duplicate_effects": "effects happened twice",
    "missing_effects": "effects are missing",
    "calls_before_intent": "calls were sent before their intent was durable",
    "once_calls_repeated": "once calls were sent again without proof",
    "wrong_keys": "calls came with another key than recorded",
    "hidden_doubts": "doubtful outcomes were not shown as unknown",
    "lost_events": "durable events lost or changed",
    "lost_acknowledged": "acknowledged operations lost",
    "split_keys": "idempotency keys stood for more than one run",
    "broken_logs": "logs do not verify, or differ from their snapshot",
    "malformed_histories": "histories had a call without its result",
    "divergent_ends": "conversations differ from the undisturbed run",
    "stuck_runs": "runs did not end",
}
EFFECTS = ("read", "idempotent", "once")


class ByEffect(NamedTuple):
    """Calls of one effect class: times sent, effects, repeats honoured by key, unknown outcomes."""

    sent: int = 0
    took_effect: int = 0
    duplicates: int = 0
    missing: int = 0
    unknown: int = 0


class Found(NamedTuple):
    """What the logs and the witness say after all; the names are those of `WRONG`."""

    kills: int
    events: int
    models_asked: int
    models_recorded: int
    by_effect: dict[str, ByEffect]
    re_executed_calls: int = 0
    duplicate_effects: int = 0
    missing_effects: int = 0
    calls_before_intent: int = 0
    once_calls_repeated: int = 0
    wrong_keys: int = 0
    hidden_doubts: int = 0
    lost_events: int = 0
    lost_acknowledged: int = 0
    split_keys: int = 0
    broken_logs: int = 0
    malformed_histories: int = 0
    divergent_ends: int = 0
    stuck_runs: int = 0

    @property
    def good(self) -> bool:
        """Say whether every promise was kept."""
        return not self.violations()

    def violations(self) -> list[str]:
        """Return what was violated, in words; nothing, if all is well."""
        counts = self._asdict()
        return [f"{counts[name]} {text}" for name, text in WRONG.items() if counts[name]]


def judge(lines: Sequence[Line], kills: Sequence[Kill], quiet: Store, store: Store) -> Found:
    """Hold the logs, the ledger and the undisturbed run against each other."""
    intents = _intents(store)
    keys = {event.key for event in intents.values() if event.effect != "read"}
    happened = Counter(line["key"] for line in lines if line["what"] == "effect")
    replied = [one for seen in store.values() for one in seen.events if _is(one, e.ModelReplied)]
    return Found(
        kills=len(kills),
        events=sum(len(seen.records) for seen in store.values()),
        models_asked=sum(line["what"] == "model" for line in lines),
        models_recorded=len(replied),
        by_effect=dict(_by_effect(lines, store, intents, happened)),
        re_executed_calls=_executed_again(lines, kills),
        duplicate_effects=sum(count - 1 for count in happened.values()),
        missing_effects=len(keys - set(happened)),
        calls_before_intent=sum(_before_intent(lines[: kill.heard], kill) for kill in kills)
        + len(set(happened) - keys),
        once_calls_repeated=_repeated(lines, store, intents),
        wrong_keys=_wrong_keys(lines, intents),
        hidden_doubts=len(_doubts(kills) - set(_unknown(store))),
        lost_events=sum(_lost(kill.store, store) for kill in kills),
        lost_acknowledged=_lost_acknowledged(lines, store)
        + sum(_lost_acknowledged(lines[: kill.heard], kill.store) for kill in kills),
        split_keys=_split_keys(lines),
        broken_logs=sum(not whole(seen) for seen in store.values()),
        malformed_histories=sum(bool(line.get("malformed")) for line in lines),
        divergent_ends=sum(
            transcript(store.get(name)) != transcript(seen) for name, seen in quiet.items()
        ),
        stuck_runs=sum(not _ended(store.get(name)) for name in quiet),
    )


def whole(seen: Seen) -> bool:
    """Say whether a log verifies, keeps to the tables, and agrees with its snapshot."""
    try:
        verify_log(seen.session, seen.records)
        check_log(seen.session, seen.records)
    except (BrokenChain, LeftModel):
        return False
    return seen.agrees


def transcript(seen: Seen | None) -> Any:
    """Return the whole conversation of a session; None if it is not well formed."""
    if seen is None:
        return None
    try:
        history = project((one.seq, one.event) for one in seen.log)
        return history.messages(1, len(seen.records))
    except PerdureError:
        return None


def answer_in(seen: Seen | None) -> Any:
    """Return the answer that ends a log, or None."""
    events = seen.events if seen is not None else []
    for one in reversed(events):
        if isinstance(one, e.RunCompleted) and one.answer <= len(events):
            answer = events[one.answer - 1]
            return answer.content if isinstance(answer, e.ModelReplied) else None
    return None


def _is(event: e.Event, kind: type[e.Event]) -> bool:
    return isinstance(event, kind)


def _ended(seen: Seen | None) -> bool:
    return seen is not None and bool(seen.records) and isinstance(seen.events[-1], ENDINGS)


def _intents(store: Store) -> dict[tuple[str, str], e.ToolCallIntended]:
    return {
        (name, one.call): one
        for name, seen in store.items()
        for one in seen.events
        if isinstance(one, e.ToolCallIntended)
    }


def _calls(lines: Iterable[Line]) -> Iterator[tuple[tuple[str, str], Line]]:
    for line in lines:
        if line["what"] == "tool":
            yield (line["session"], line["call"]), line


def _by_effect(
    lines: Sequence[Line],
    store: Store,
    intents: dict[tuple[str, str], e.ToolCallIntended],
    happened: Counter[str],
) -> Iterator[tuple[str, ByEffect]]:
    unknown = set(_unknown(store))
    for effect in EFFECTS:
        mine = {call: one for call, one in intents.items() if one.effect == effect}
        keys = {one.key for one in mine.values()} if effect != "read" else set()
        yield (
            effect,
            ByEffect(
                sent=sum(call in mine for call, _ in _calls(lines)),
                took_effect=len(keys & set(happened)),
                duplicates=sum(happened[key] - 1 for key in keys if key in happened),
                missing=len(keys - set(happened)),
                unknown=len(unknown & set(mine)),
            ),
        )


def _executed_again(lines: Sequence[Line], kills: Sequence[Kill]) -> int:
    """Count the calls that were made in a later life although their result was durable."""
    again = 0
    for kill in kills:
        done: set[Any] = set()
        for name, seen in kill.store.items():
            events = seen.events
            done |= {(name, one.call) for one in events if isinstance(one, OUTCOMES)}
            turns = sum(isinstance(one, e.ModelReplied) for one in events)
            done |= {(name, turn) for turn in range(turns)}
        later = lines[kill.heard :]
        again += sum(call in done for call, _ in _calls(later))
        again += sum(
            (one["session"], one["turn"]) in done for one in later if one["what"] == "model"
        )
    return again


def _before_intent(lines: Sequence[Line], kill: Kill) -> int:
    """Count the calls of the life that ended here whose intent was not durable at its end."""
    intended: set[Any] = set(_intents(kill.store))
    for name, seen in kill.store.items():
        models = [one for one in seen.events if isinstance(one, e.ModelCallIntended)]
        intended |= {(name, one.step - 1) for one in models}
    mine = [line for line in lines if line["pid"] == kill.pid]
    wrong = sum(call not in intended for call, _ in _calls(mine))
    asked = [(one["session"], one["turn"]) for one in mine if one["what"] == "model"]
    return wrong + sum(one not in intended for one in asked)


def _repeated(
    lines: Sequence[Line], store: Store, intents: dict[tuple[str, str], e.ToolCallIntended]
) -> int:
    """Count how often a `once` call ran beyond the times that its log lets it begin."""
    begun = Counter(
        (name, one.call)
        for name, seen in store.items()
        for one in seen.events
        if isinstance(one, e.ToolCallBegun)
    )
    ran = Counter(
        call for call, _ in _calls(lines) if call in intents and intents[call].effect == "once"
    )
    return sum(max(0, count - begun[call]) for call, count in ran.items())


def _wrong_keys(lines: Sequence[Line], intents: dict[tuple[str, str], e.ToolCallIntended]) -> int:
    return sum(call in intents and intents[call].key != line["key"] for call, line in _calls(lines))


def _doubts(kills: Sequence[Kill]) -> set[tuple[str, str]]:
    """Return the `once` calls that had begun and had no outcome when a life ended."""
    found = set()
    for kill in kills:
        for name, seen in kill.store.items():
            begun: set[tuple[str, str]] = set()
            for one in seen.events:
                if isinstance(one, e.ToolCallBegun):
                    begun.add((name, one.call))
                else:
                    begun.discard((name, getattr(one, "call", "")))
            found |= begun
    return found


def _unknown(store: Store) -> Iterator[tuple[str, str]]:
    for name, seen in store.items():
        for one in seen.events:
            if isinstance(one, e.ToolCallUnknown):
                yield name, one.call


def _lost(before: Store, after: Store) -> int:
    """Count the records that were durable once and are not there, unchanged, in the end."""
    return sum(
        len(set(seen.records) - set(after[name].records if name in after else ()))
        for name, seen in before.items()
    )


def _lost_acknowledged(lines: Sequence[Line], store: Store) -> int:
    """Count the operations that were answered `ok` and of which a store knows nothing."""
    lost = 0
    done = {
        "reply": (e.QuestionAnswered,),
        "cancel": (e.RunCancelled, e.RunWithdrawn),
        "resolve": (e.ToolCallSucceeded, e.ToolCallFailed, e.ToolCallReopened),
    }
    told: Counter[tuple[str, str]] = Counter()
    for line in lines:
        if line["what"] != "client" or line["state"] != "ok":
            continue
        if line["do"] == "send":
            lost += line["run"] not in _known(store.get(line["session"]))
        else:
            told[line["session"], line["do"]] += 1
    for (session, do), count in told.items():
        events = store[session].events if session in store else []
        by_person = [
            one
            for one in events
            if isinstance(one, done[do])
            and (do != "resolve" or str(getattr(one, "by", "")).startswith("person"))
        ]
        lost += max(0, count - len(by_person))
    return lost


def _known(seen: Seen | None) -> set[str]:
    if seen is None:
        return set()
    received = {one.message for one in seen.events if isinstance(one, e.MessageReceived)}
    return received | set(seen.inbox)


def _split_keys(lines: Sequence[Line]) -> int:
    runs: dict[str, set[str]] = {}
    for line in lines:
        if line["what"] == "client" and line["do"] == "send" and line["state"] == "ok":
            runs.setdefault(line["key"], set()).add(line["run"])
    return sum(len(found) - 1 for found in runs.values())
