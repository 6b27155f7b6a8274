"""What must be true of a world that has healed and come to its end.

The rules that hold at every moment are in `observer`; these look at the whole: the store's log and
rows, the ledger of what really happened, and what clients were told.
"""

from __future__ import annotations

from collections import Counter

from perdure.core import events as e
from perdure.core.codec import Record, decode_event
from perdure.core.errors import PerdureError
from perdure.core.evolve import evolve
from perdure.core.ids import SessionId
from perdure.core.runs import RunRow
from perdure.core.state import EMPTY, State, decode_snapshot
from perdure.testing.simulation.ledger import Ledger
from perdure.testing.simulation.store import Waiting, perform_at_rest
from perdure.testing.simulation.world import World
from perdure.testing.trace import LeftModel, check_log

LOG_EVENTS_MAX = 1_000_000


def judge(world: World) -> None:
    """Hold the store, the ledger and the clients' histories against each other."""
    try:
        _judge(world)
    except (PerdureError, Waiting) as error:
        world.observer.wrong(f"the store cannot be judged: {error}")


def _judge(world: World) -> None:
    wrong = world.observer.wrong
    events: dict[SessionId, list[e.Event]] = {}
    heads: dict[SessionId, list[str]] = {}
    for session in world.observer.inboxes:
        records = perform_at_rest(world.loop, world.store.read(session, 0, LOG_EVENTS_MAX))
        events[session] = [decode_event(record.body) for record in records]
        heads[session] = [record.hash.hex() for record in records]
        _the_log(world, session, records, events[session])
        _the_ledger(world, session, events[session])
    for key, call in world.ledger.keys.items():
        if world.ledger.effects[call] > 1:
            wrong(f"{call[0]} {call[1]} took effect more than once, with key {key}")
    _the_forks(world, events, heads)
    _the_children(world, events)
    rows = {row.id: row for row in world.rows()}
    _the_accepted(world, events, rows)
    _the_clients(world, events, rows)


def _the_log(
    world: World, session: SessionId, records: list[Record], events: list[e.Event]
) -> None:
    """The log is whole, as long as it was seen to grow, and is what snapshot and tail say."""
    wrong = world.observer.wrong
    try:
        trace = check_log(session, records)
    except LeftModel as error:
        wrong(f"{session}: {error}")
        return
    if trace.seq != world.observer.trace(session).seq:
        wrong(f"the log of {session} has {trace.seq} events, and more were durable")
    loaded = perform_at_rest(world.loop, world.store.load(session))
    assert loaded is not None
    if loaded.snapshot is None:
        return
    start = decode_snapshot(loaded.snapshot)
    if start is None:
        wrong(f"the snapshot of {session} cannot be read")
        return
    by_snapshot, by_log = _fold(start, events[start.version :]), _fold(EMPTY, events)
    if by_snapshot != by_log:
        wrong(f"{session}: the snapshot and its tail are not what the log says")


def _fold(state: State, events: list[e.Event]) -> State:
    for event in events:
        state = evolve(state, event)
    return state


def _the_forks(
    world: World, events: dict[SessionId, list[e.Event]], heads: dict[SessionId, list[str]]
) -> None:
    """A fork names the part of a log that is there still, byte by byte."""
    for session, log in events.items():
        if log and isinstance(log[0], e.SessionForked):
            origin = log[0].origin
            source = SessionId(session.tenant, origin.agent, origin.session)
            if heads.get(source, [])[origin.upto - 1 : origin.upto] != [origin.head]:
                world.observer.wrong(f"{session} is a fork of what {source} has not")


def _the_children(world: World, events: dict[SessionId, list[e.Event]]) -> None:
    """A child began once or never, and what its parent was told is how it ended."""
    wrong = world.observer.wrong
    begun: Counter[str] = Counter()
    answers: dict[str, object] = {}
    for log in events.values():
        for event in log:
            if isinstance(event, e.RunStarted | e.RunWithdrawn):
                begun[event.run] += 1
            if isinstance(event, e.RunCompleted):
                reply = log[event.answer - 1]
                assert isinstance(reply, e.ModelReplied)
                answers[event.run] = reply.content
            elif isinstance(event, e.RunFailed | e.RunCancelled | e.RunWithdrawn):
                answers[event.run] = event
    for session, log in events.items():
        for event in log:
            if isinstance(event, e.ChildLaunched | e.ChildRestarted):
                world.observer.counts["children"] += 1
                if begun[event.child] > 1:
                    wrong(f"{session} launched {event.child} once, and it began more than once")
            elif isinstance(event, e.ToolCallSucceeded) and event.by.startswith("child:"):
                said = answers.get(event.by.removeprefix("child:"))
                if said != event.content:
                    wrong(f"{session} was told {event.content!r} by {event.by}, which said {said}")
            elif isinstance(event, e.ToolCallFailed) and event.by.startswith("child:"):
                ended = event.by.removeprefix("child:") in answers
                if not ended:
                    wrong(f"{session} was told that {event.by} failed, and it never ended")


def _the_ledger(world: World, session: SessionId, events: list[e.Event]) -> None:
    """Every class was done as often as it may be; what is recorded as done was done."""
    wrong, ledger = world.observer.wrong, world.ledger
    intended = {event.call: event for event in events if isinstance(event, e.ToolCallIntended)}
    begun = {(event.call, event.attempt) for event in events if isinstance(event, e.ToolCallBegun)}
    for entry in ledger.entries:
        if entry.session != session:
            continue
        call = intended.get(entry.call)
        if call is None or call.key != entry.key:
            wrong(f"{session} {entry.call} was {entry.what}, and was never intended so")
        elif call.effect == "once" and entry.what != "probed":
            if (entry.call, entry.attempt) not in begun:
                wrong(f"{session} {entry.call} was {entry.what}, and had not begun")
            if ledger.executions[session, entry.call, entry.attempt] > 1:
                wrong(f"{session} {entry.call} is once, and ran more than once")
    for event in events:
        if isinstance(event, e.ToolCallSucceeded) and not event.by.startswith("child:"):
            changes = intended[event.call].effect != "read"
            if changes:
                _recorded(world, ledger, session, event.call)


def _recorded(world: World, ledger: Ledger, session: SessionId, call: str) -> None:
    if ledger.effects[session, call] != 1:
        times = ledger.effects[session, call]
        world.observer.wrong(f"{session} {call} is recorded as done, and took effect {times} times")


def _the_accepted(
    world: World, events: dict[SessionId, list[e.Event]], rows: dict[str, RunRow]
) -> None:
    """Nothing that was accepted is lost: it is in the log, or still in the inbox."""
    wrong, inboxes = world.observer.wrong, world.observer.inboxes
    known: dict[SessionId, set[str]] = {}
    ended: dict[str, str] = {}
    for session, log in events.items():
        known[session] = {event.message for event in log if isinstance(event, e.MessageReceived)}
        for event in log:
            if isinstance(event, e.RunStarted | e.RunWithdrawn):
                known[session].add(event.run)
            if isinstance(event, e.RunCompleted | e.RunFailed | e.RunCancelled | e.RunWithdrawn):
                ended[event.run] = _HOW[type(event)]
    for message, (session, command) in world.observer.messages.items():
        if message not in known[session] and message not in inboxes[session]:
            wrong(f"message {message} of {session} was accepted, and is nowhere")
        row = rows.get(message)
        if row is None:
            wrong(f"message {message} of {session} has no row")
        elif message in ended and row.status != ended[message]:
            wrong(f"run {message} is {row.status} in its row and {ended[message]} in the log")
        elif row.status == "merged" and command.mode != "steer":
            wrong(f"message {message} was merged, and did not steer")


_HOW = {
    e.RunCompleted: "completed",
    e.RunFailed: "failed",
    e.RunCancelled: "cancelled",
    e.RunWithdrawn: "cancelled",
}


STARTING = ("send", "retry", "fork")


def _the_clients(
    world: World, events: dict[SessionId, list[e.Event]], rows: dict[str, RunRow]
) -> None:
    """What a client was told is true, and one key is one run."""
    wrong = world.observer.wrong
    by_key: dict[tuple[object, ...], str] = {}
    answered = {
        (session, event.call)
        for session, log in events.items()
        for event in log
        if isinstance(event, e.QuestionAnswered)
    }
    for operation in world.ledger.operations:
        if operation.status != "ok":
            continue
        if operation.kind in STARTING and operation.detail not in world.observer.messages:
            wrong(f"{operation.kind} was acknowledged as {operation.detail}, and is not accepted")
        if operation.kind == "send" and operation.subject[2] is not None:
            if by_key.setdefault(operation.subject, operation.detail) != operation.detail:
                wrong(f"the key {operation.subject} gave two runs")
        elif operation.kind == "cancel" and rows[operation.subject[0]].status != "cancelled":
            wrong(f"run {operation.subject[0]} was cancelled, and is not")
        elif operation.kind == "reply":
            run, call = operation.subject
            if (rows[run].session, call) not in answered:
                wrong(f"question {call} of run {run} was answered, and the log has no answer")
