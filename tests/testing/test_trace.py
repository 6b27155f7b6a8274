"""The trace checker takes lawful logs, and refuses each way to break one at the right event."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.agent import Subagents
from perdure.core.budget import Reserve
from perdure.core.codec import Record, genesis, link, seal
from perdure.core.export import _Line, verify_export
from perdure.core.family import Parent
from perdure.core.ids import SessionId, effect_key
from perdure.core.messages import (
    AssistantMessage,
    Message,
    ToolMessage,
    ToolRequest,
    UserMessage,
)
from perdure.testing.trace import RULES, LeftModel, check_log
from tests.core.family import ABOVE, Family
from tests.core.rules import Rules, ask
from tests.core.story import SESSION, Story, call, spending
from tests.core.test_golden import LOGS, STATES

Log = list[e.Event]


def lawful() -> Log:
    """Return the log of two runs with a call of every kind, a retry, and a loss."""
    story = Story()
    story.message("do it all")
    story.fail("transient", "timeout")
    story.fire("backoff")
    story.reply(
        call("look"),
        call("pay"),
        call("save"),
        call("wait", seconds=5),
        call("ask_human", question="Shall I?"),
    )
    story.result("look")
    story.begin("pay")
    story.lose("pay")
    story.resolve("pay", "did_not_happen")
    story.begin("pay")
    story.result("pay")
    story.lose("save")
    story.result("save")
    story.fire("timer")
    story.answer("yes")
    story.reply(text="done")
    story.message("and again")
    story.reply(text="done again")
    return story.log


def forked() -> Log:
    """Return the log of a fork that takes its message in, and of a later message with a context."""
    story = Story()
    turn = (AssistantMessage("hm", (ToolRequest("c1", "look"),)), ToolMessage("c1", "look", "seen"))
    origin = e.Origin("support", "s0", "r0", 1, 9, "00")
    story.message("otherwise", inherited=((UserMessage("go"),), turn), fork_of=origin)
    story.reply(text="done")
    story.message("and again", inherited=((UserMessage({"a": 1}, kind="inherited_context"),),))
    story.reply(text="done again")
    return story.log


def governed() -> Log:
    """Return a log with a call that two people approve as edited, and one that stays in doubt."""
    story = Story(gate=Rules(save=ask(2)))
    story.message("go")
    story.reply(call("save", cents=1), call("risky"))
    story.begin("risky")
    story.lose("risky")
    story.decide(by="ann")
    story.decide("edit", by="ann", arguments={"cents": 2})
    story.decide(by="ann")
    story.decide("reassign", by="bob", roles=("board",))
    story.decide(by="bob")
    story.result("save")
    story.settle("1.1.t1", "happened")
    story.reply(text="done")
    return story.log


def with_children() -> Log:
    """Return a log with two children, of whom one is launched again and one is taken along."""
    story = Family(Subagents(on_failure="restart"))
    story.message("go", parent=ABOVE)
    story.launch("ann", "bob")
    story.tell(c.ReportDelivered(letters=tuple(one.id for one in story.state.outbox)))
    story.ends(0, "failed", message="no luck")
    story.ends(0, content="found")
    story.cancel()
    story.tell(c.ReportDelivered(letters=tuple(one.id for one in story.state.outbox)))
    return story.log


def within_budget() -> Log:
    """Return a log with a budget that is raised twice, for a model and for a tool."""
    story = Story(spending(tokens_max=2_000, calls_max={"look": 0}))
    story.message("go")
    story.more(tokens=8_000)
    story.reply(call("look"))
    story.more(calls={"look": 1})
    story.result("look", "seen")
    story.reply(text="done")
    return story.log


def sealed(log: Log, session: SessionId = SESSION) -> list[Record]:
    """Return the records of a log."""
    return seal(genesis(session), 0, log)


def at(log: Log, kind: type[e.Event], number: int = 1) -> int:
    """Return the position (from 1) of the n-th event of a kind."""
    places = [seq for seq, event in enumerate(log, 1) if isinstance(event, kind)]
    return places[number - 1]


def changed(kind: type[e.Event], nth: int = 1, **fields: Any) -> Callable[[Log], int]:
    """Change fields of an event; that event is the one to refuse."""

    def breaks(log: Log) -> int:
        seq = at(log, kind, nth)
        log[seq - 1] = replace(log[seq - 1], **fields)
        return seq

    return breaks


def without(kind: type[e.Event], refused: type[e.Event], number: int = 1) -> Callable[[Log], int]:
    """Leave out an event; the next of the other kind is the one to refuse."""

    def breaks(log: Log) -> int:
        seq = at(log, kind, number)
        del log[seq - 1]
        later = log[seq - 1 :]
        return seq + next(n for n, event in enumerate(later) if isinstance(event, refused))

    return breaks


def twice(kind: type[e.Event], number: int = 1) -> Callable[[Log], int]:
    """Record an event again, right after itself."""

    def breaks(log: Log) -> int:
        seq = at(log, kind, number)
        log.insert(seq, log[seq - 1])
        return seq + 1

    return breaks


def moved_before(kind: type[e.Event], other: type[e.Event]) -> Callable[[Log], int]:
    """Record an event before another one that it has to follow."""

    def breaks(log: Log) -> int:
        event = log.pop(at(log, kind) - 1)
        seq = at(log, other)
        log.insert(seq - 1, event)
        return seq

    return breaks


def asks_early(log: Log) -> int:
    """Ask a model in the middle of a step."""
    seq = at(log, e.ToolCallSucceeded)
    step = log[at(log, e.ModelCallIntended, 3) - 1]
    log.insert(seq, replace(step, upto=seq))
    return seq + 1


def key_with_attempt(log: Log) -> int:
    """Make a key of the attempt, too."""
    seq = at(log, e.ToolCallIntended, 3)
    intended: Any = log[seq - 1]
    run = next(event.run for event in log if isinstance(event, e.RunStarted))
    log[seq - 1] = replace(intended, key=effect_key(SESSION, run, 1, intended.ordinal, "save/1"))
    return seq


def unread_arguments(log: Log) -> int:
    """Run a call whose arguments could not be read."""
    seq = at(log, e.ModelReplied)
    reply: Any = log[seq - 1]
    first = ToolRequest(reply.tool_calls[0].id, "look", undecodable="{")
    log[seq - 1] = replace(reply, tool_calls=(first, *reply.tool_calls[1:]))
    return at(log, e.ToolCallIntended)


def forked_late(log: Log) -> int:
    """Fork a session that has begun."""
    origin = e.Origin("support", "s0", "r0", 1, 9, "00")
    seq = at(log, e.MessageReceived, 2)
    log.insert(seq - 1, e.SessionForked(at=0, message="r4", origin=origin))
    return seq


def inherited(*messages: Message) -> Callable[[Log], int]:
    """Let a session begin with messages that belong to no group."""

    def breaks(log: Log) -> int:
        log.insert(0, e.HistoryInherited(at=0, message="r1", messages=messages))
        return 1

    return breaks


BROKEN: dict[str, tuple[str, Callable[[Log], int]]] = {
    "a message is recorded twice": ("burnt id", twice(e.MessageReceived)),
    "a run starts without its message": ("run", without(e.MessageReceived, e.RunStarted, 2)),
    "a run starts twice": ("session table", twice(e.RunStarted)),
    "a run's number is skipped": ("run", changed(e.RunStarted, 2, number=3)),
    "a run is of another message": ("run", changed(e.RunStarted, run="r9")),
    "a reply has no request": ("session table", without(e.ModelCallIntended, e.ModelCallFailed)),
    "a model is asked in mid-step": ("session table", twice(e.ModelCallIntended)),
    "a model is asked before the answers": ("W6", asks_early),
    "a model is not shown the end": ("range", changed(e.ModelCallIntended, 2, upto=2)),
    "a model is shown a summary that is none": ("range", changed(e.ModelCallIntended, summary=1)),
    "a step is skipped": ("run", changed(e.ModelCallIntended, 3, step=7)),
    "a retry comes early": ("W7", changed(e.RetryFellDue, at=0)),
    "a retry follows no failure": ("session table", without(e.ModelCallFailed, e.RetryScheduled)),
    "a tool nobody asked for": ("W1", changed(e.ToolCallIntended, name="steal")),
    "a call at a place that is none": ("W1", changed(e.ToolCallIntended, ordinal=9)),
    "a call of another step": ("W1", changed(e.ToolCallIntended, step=2)),
    "a call by another name": ("W1", changed(e.ToolCallIntended, call="1.1.t7")),
    "arguments that cannot be read": ("W1", unread_arguments),
    "a key that knows its attempt": ("W5", key_with_attempt),
    "a call is intended twice": ("call table", twice(e.ToolCallIntended)),
    "an answered call is intended again": ("call table", twice(e.ToolCallSucceeded)),
    "a once call succeeds unbegun": ("W2", without(e.ToolCallBegun, e.ToolCallSucceeded, 2)),
    "a read call begins": ("call table", changed(e.ToolCallBegun, call="1.1.t0")),
    "an idempotent call begins": ("W2", changed(e.ToolCallBegun, call="1.1.t2")),
    "an old attempt begins": ("W4", changed(e.ToolCallBegun, 2, attempt=1)),
    "an attempt is lost that is not there": ("W4", changed(e.ToolCallLost, attempt=2)),
    "a call is unknown and had not begun": (
        "call table",
        without(e.ToolCallBegun, e.ToolCallUnknown),
    ),
    "a timer fires early": ("W7", changed(e.TimerFired, at=0)),
    "a timer fires when no run is there": (
        "session table",
        moved_before(e.TimerFired, e.RunStarted),
    ),
    "a timer is answered like a question": (
        "call table",
        changed(e.QuestionAnswered, call="1.1.t3"),
    ),
    "a question has no answer": ("W6", without(e.QuestionAnswered, e.ModelCallIntended)),
    "an answer is that of another event": ("answer", changed(e.RunCompleted, answer=1)),
    "another run is completed": ("run", changed(e.RunCompleted, run="r2")),
    "a run is completed twice": ("session table", twice(e.RunCompleted)),
    "a session is forked that has begun": ("fork", forked_late),
    "a call is inherited without its answer": (
        "fork",
        inherited(AssistantMessage("", (ToolRequest("c1", "look"),))),
    ),
    "an answer is inherited without its call": ("fork", inherited(ToolMessage("c1", "look", ""))),
    "two messages are inherited as one": ("fork", inherited(UserMessage("a"), UserMessage("b"))),
    "nothing is inherited": ("fork", inherited()),
}


UNGOVERNED: dict[str, tuple[str, Callable[[Log], int]]] = {
    "too few approved": ("approval", without(e.ApprovalGiven, e.ToolCallIntended, 3)),
    "one person approves twice": ("approval", twice(e.ApprovalGiven)),
    "approvals outlive an edit": ("approval", without(e.ArgumentsEdited, e.ApprovalGiven)),
    "other arguments are approved": ("approval", changed(e.ApprovalGiven, digest="0")),
    "others are sent than were approved": ("approval", changed(e.ToolCallIntended, 2, digest="0")),
    "edited arguments have another digest": ("approval", changed(e.ArgumentsEdited, digest="0")),
    "a call is resolved that is in no doubt": ("ledger", twice(e.ToolCallResolved)),
    "a call is resolved that was never made": ("ledger", changed(e.ToolCallResolved, call="x")),
}


NO_FAMILY: dict[str, tuple[str, Callable[[Log], int]]] = {
    "a child has another id": ("child", changed(e.ChildLaunched, child="x")),
    "a child has another parent": (
        "child",
        changed(e.ChildLaunched, parent=Parent("x", "1.1.t0", "r0", ())),
    ),
    "a child knows too few above it": (
        "child",
        changed(e.ChildLaunched, parent=Parent("r1", "1.1.t0", "r0", (("support", "s1"),))),
    ),
    "another run answers": ("child", changed(e.ToolCallSucceeded, by="child:x")),
    "a child is launched unasked": ("W1", changed(e.ChildLaunched, ordinal=7)),
    "a child that answered is launched again": (
        "call table",
        changed(e.ChildRestarted, call="1.1.t9"),
    ),
    "a letter is delivered twice": ("letters", twice(e.LettersDelivered)),
    "a letter is delivered that nobody owes": (
        "letters",
        changed(e.LettersDelivered, 2, letters=("end:r9",)),
    ),
}
OVERSPENT: dict[str, tuple[str, Callable[[Log], int]]] = {
    "a model is asked for more than is left": (
        "budget",
        changed(e.ModelCallIntended, reserved=Reserve(10**9)),
    ),
    "a model is asked with nothing reserved": (
        "budget",
        changed(e.ModelCallIntended, reserved=None),
    ),
    "a budget is raised by less than nothing": ("budget", changed(e.BudgetRaised, tokens=-1)),
}
TABLES = (
    (BROKEN, lawful),
    (UNGOVERNED, governed),
    (NO_FAMILY, with_children),
    (OVERSPENT, within_budget),
)


def test_a_log_with_children_is_taken() -> None:
    trace = check_log(SESSION, sealed(with_children()))
    assert (trace.status, trace.ended, trace.owed) == ("idle", {"r1": "cancelled"}, set())


def test_a_lawful_log_is_taken() -> None:
    trace = check_log(SESSION, sealed(lawful()))
    assert (trace.status, trace.run, dict(trace.calls)) == ("idle", None, {})
    assert trace.ended == {"r1": "completed", "r4": "completed"}


def test_a_governed_log_is_taken() -> None:
    trace = check_log(SESSION, sealed(governed()))
    assert (trace.status, trace.ended, trace.doubts) == ("idle", {"r1": "completed"}, set())


def test_a_fork_is_taken() -> None:
    trace = check_log(SESSION, sealed(forked()))
    assert trace.ended == {"r1": "completed", "r2": "completed"}


@pytest.mark.parametrize("how", [how for table, _ in TABLES for how in table])
def test_a_broken_log_is_refused_at_the_right_event(how: str) -> None:
    (rule, breaks), log = next((table[how], made()) for table, made in TABLES if how in table)
    seq = breaks(log)
    with pytest.raises(LeftModel) as left:
        check_log(SESSION, sealed(log))
    assert (left.value.rule, left.value.seq) == (rule, seq)


def test_a_changed_byte_and_a_gap_are_found() -> None:
    records = sealed(lawful())
    changed_byte = [*records[:4], records[4]._replace(body=records[4].body + b" "), *records[5:]]
    for wrong in (changed_byte, records[:4] + records[5:]):
        with pytest.raises(LeftModel) as left:
            check_log(SESSION, wrong)
        assert (left.value.rule, left.value.seq) == ("chain", 5)


def test_the_log_of_one_session_is_none_of_another() -> None:
    with pytest.raises(LeftModel) as left:
        check_log(SessionId("t1", "support", "s2"), sealed(lawful()))
    assert left.value.rule == "chain"


def test_every_rule_has_a_log_that_breaks_it() -> None:
    elsewhere = {"chain", "readable"}
    broken = {rule for table, _ in TABLES for rule, _ in table.values()}
    assert broken == set(RULES) - elsewhere


def test_bytes_that_are_no_event_are_refused() -> None:
    records = sealed(lawful())[:2]
    body = b'{"type":"run_vanished","at":1}'
    with pytest.raises(LeftModel) as left:
        check_log(SESSION, [*records, Record(3, body, link(records[-1].hash, body))])
    assert (left.value.rule, left.value.seq) == ("readable", 3)


@pytest.mark.parametrize("name", STATES)
def test_the_logs_of_released_versions_are_lawful(name: str) -> None:
    lines = Path(LOGS / f"{name}.jsonl").read_bytes().splitlines()
    records = []
    for line in lines[1:]:
        one = msgspec.json.decode(line, type=_Line)
        records.append(Record(one.seq, bytes(one.event), bytes.fromhex(one.hash)))
    session = verify_export(lines).session
    assert check_log(session, records).seq == len(records)
