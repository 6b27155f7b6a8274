"""Watches a world while it runs: the rules that hold at every moment, and the rare situations.

It sees the store at the moment of each write, every call that leaves a node, and what the runtime
tells of itself. What it sees changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from perdure.adapters.stores.memory import MemoryStore
from perdure.core import events as e
from perdure.core.codec import decode_event
from perdure.core.commands import Report, ReportToolResult, SendMessage, decode_command
from perdure.core.errors import Fenced, StoreError
from perdure.core.history import malformed
from perdure.core.ids import SessionId
from perdure.ports.session_store import (
    Claimed,
    InboxEntry,
    NotClaimed,
    Receipt,
    RunQuery,
    StepCommit,
)
from perdure.ports.workers import ModelTask, Task, ToolTask
from perdure.testing.simulation.ledger import Ledger
from perdure.testing.simulation.loop import VirtualLoop
from perdure.testing.simulation.store import Waiting, perform
from perdure.testing.trace import LeftModel, Trace

SKEW_MS_MIN = 300_000


class Observer:
    """The eyes of the oracles. `violations` is empty in a world that keeps its promises."""

    def __init__(self, loop: VirtualLoop, store: MemoryStore, ledger: Ledger) -> None:
        self._loop = loop
        self._ledger = ledger
        self.violations: list[str] = []
        self.probes: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.told: list[tuple[Any, ...]] = []
        self.traces: dict[SessionId, Trace] = {}
        self.holders: dict[SessionId, str] = {}
        self.messages: dict[str, tuple[SessionId, SendMessage]] = {}
        self.inboxes: dict[SessionId, set[str]] = {}
        self._accepted: set[str] = set()
        self.was_paused: set[str] = set()
        self.on_takeover: Callable[[str], None] = lambda life: None
        self._reports: set[tuple[SessionId, str, int, bool]] = set()
        self._snapshots: set[SessionId] = set()
        self._store = store
        self._leases: dict[str, int] = {}
        self._epochs: dict[SessionId, int] = {}

    def wrong(self, what: str) -> None:
        """Note that a promise was broken."""
        self.violations.append(f"at {self._loop.now_us / 1e6:.3f} s: {what}")

    def trace(self, session: SessionId) -> Trace:
        """Return where the durable log of a session stands."""
        trace = self.traces.get(session)
        if trace is None:
            trace = self.traces[session] = Trace(session)
        return trace

    # ----------------------------------------------------------------------------------- the store

    def accepted(self, entry: InboxEntry, receipt: Receipt) -> None:
        """A command was accepted, or known."""
        if receipt.duplicate:
            self.probes["duplicate delivery"] += 1
            self.probes["a letter twice"] += entry.id.startswith("end:")
            return
        self.inboxes.setdefault(entry.session, set()).add(entry.id)
        self._accepted.add(entry.id)
        command = decode_command(entry.command, entry.accepted_at)
        if isinstance(command, SendMessage):
            row = RunQuery(tenant=entry.session.tenant, run=entry.id)
            if not perform(self._store.list(row)):
                self.wrong(f"{entry.id} of {entry.session} was acknowledged, and is not there")
            self.messages[command.id] = (entry.session, command)
            folding = self.trace(entry.session).status == "compacting"
            self.probes["steer during compaction"] += folding and command.mode == "steer"
            self.probes["a run retried"] += command.retry_of is not None
            self.probes["a run forked"] += command.fork_of is not None

    def claimed(self, life: str, session: SessionId, answer: Claimed | NotClaimed) -> None:
        """Somebody asked for a session."""
        if isinstance(answer, NotClaimed):
            self.probes["two nodes race"] += answer.why == "held"
            return
        before = self.holders.get(session)
        self._check_claim(life, before, session, answer)
        trace = self.trace(session)
        begun = any(call.status == "begun" for call in trace.calls.values())
        if before is not None and before != life:
            self.probes["lease lost in a once call"] += begun and before in self.was_paused
            self.on_takeover(before)
        self.holders[session] = life
        if answer.loaded.version != trace.seq:
            self.wrong(f"{session} was claimed at {answer.loaded.version}, its log is {trace.seq}")

    def _check_claim(
        self, life: str, before: str | None, session: SessionId, answer: Claimed
    ) -> None:
        """A claim never steals from the living, and its token is a new one."""
        if before not in (None, life) and self._leases.get(before, 0) > self._loop.now_us // 1000:
            self.wrong(f"{life} took {session} from {before}, whose lease was alive")
        if answer.token.epoch <= self._epochs.get(session, 0):
            self.wrong(f"{life} was given epoch {answer.token.epoch} of {session} again")
        self._epochs[session] = answer.token.epoch

    def released(self, life: str, session: SessionId, snapshot: bool, quarantined: bool) -> None:
        """A claim was given up."""
        self.holders.pop(session, None)
        if snapshot:
            self._snapshots.add(session)
            self.counts["snapshots"] += 1
        waiting = self.inboxes.get(session)
        self.probes["postponed survives"] += bool(waiting) and self.trace(session).run is not None

    def renewed(self, life: str, lease_ms: int, alive: bool) -> None:
        """A lease was renewed, or begun anew."""
        self._leases[life] = self._loop.now_us // 1000 + lease_ms
        if not alive:
            self.probes["renewed too late"] += 1
            for session in [s for s, holder in self.holders.items() if holder == life]:
                del self.holders[session]

    def lost(self, life: str, what: str, applied: bool) -> None:
        """A request or its answer got lost on the way."""
        self.counts["answers lost" if applied else "requests lost"] += 1
        if applied and what in ("commit", "claim"):
            self.probes[f"{what} landed, answer lost"] += 1

    def repeated(self, known: bool) -> None:
        """A client, left in doubt, sent its message again; it was `known` already, or not."""
        self.probes["accept in doubt, then repeated"] += known

    def refused(self, life: str, step: StepCommit, error: StoreError, pending: int) -> None:
        """A step was refused."""
        if isinstance(error, Fenced):
            self.counts["fences"] += 1
            self.probes["fence inside a batch"] += pending > 0
            self.probes["paused and fenced"] += life in self.was_paused

    def committed(self, life: str, step: StepCommit) -> None:
        """A step is durable: its events are stepped through the tables."""
        session = step.session
        trace = self.trace(session)
        if self.holders.get(session) != life:
            self.wrong(f"{life} wrote {session}, which {self.holders.get(session)} holds")
        if step.expected != trace.seq:
            self.wrong(f"{session} was written at {step.expected}, its log is at {trace.seq}")
        self._check_durable(step)
        events = [decode_event(record.body) for record in step.records]
        self.counts["commits"] += 1
        self.counts["events"] += len(events)
        try:
            for event in events:
                self._before(trace, event)
                trace.step(event)
        except LeftModel as error:
            self.wrong(f"{session}: {error}")
        for entry in step.consumed:
            self.inboxes.get(session, set()).discard(entry)

    def _check_durable(self, step: StepCommit) -> None:
        """What was acknowledged is there to be read."""
        if step.records:
            last = step.records[-1]
            try:
                found = perform(self._store.read(step.session, last.seq - 1, 1))
            except Waiting:
                found = []
            if found != [last]:
                self.wrong(f"event {last.seq} of {step.session} was acknowledged, and is not there")

    def submitted(self, step: StepCommit, under_way: Collection[StepCommit]) -> None:
        """A step is on its way while others of its session are not answered yet."""
        kinds = {
            type(decode_event(record.body)) for one in (step, *under_way) for record in one.records
        }
        both = {e.TimerFired, e.QuestionAnswered} <= kinds
        self.probes["timer and answer together"] += both

    def _before(self, trace: Trace, event: e.Event) -> None:
        """Look at an event that is about to join the log."""
        look = _EVENTS.get(type(event))
        if look is not None:
            look(self, trace, event)

    def _succeeded(self, trace: Trace, event: e.ToolCallSucceeded) -> None:
        call = trace.calls.get(event.call)
        self._check_reported(trace, event.call, event.by, ok=True)
        if call is not None and call.kind == "tool" and call.effect != "read":
            known = self._ledger.effects[trace.session, event.call]
            if not known:
                self.wrong(f"{trace.session} {event.call} succeeded, and took no effect")
        self.probes["probe says happened"] += event.by == "probe"
        self.probes["a person decides"] += event.by.startswith("person")

    def _check_reported(self, trace: Trace, call_id: str, by: str, *, ok: bool) -> None:
        """An outcome that is said to be the worker's is what a worker said of this attempt."""
        call = trace.calls.get(call_id)
        attempt = call.attempt if call is not None else 0
        if by == "worker" and (trace.session, call_id, attempt, ok) not in self._reports:
            self.wrong(f"{trace.session} {call_id} has an outcome that no worker reported")

    def _failed(self, trace: Trace, event: e.ToolCallFailed) -> None:
        if event.kind not in ("lost", "unknown"):
            self._check_reported(trace, event.call, event.by, ok=False)
        self.probes["given up"] += event.kind == "lost"
        if event.kind == "unknown":
            self.counts["unknowns told"] += 1
            self.probes["the model hears of doubt"] += 1

    def _restarted(self, trace: Trace, event: e.ChildRestarted) -> None:
        self.probes["a child launched again"] += 1

    def _delivered(self, trace: Trace, event: e.LettersDelivered) -> None:
        for letter in event.letters:
            if not {letter, letter.removeprefix("start:")} & self._accepted:
                self.wrong(f"{trace.session} has noted that {letter} arrived, and it has not")
        along = any(letter.startswith("cancel:") for letter in event.letters)
        self.probes["a child taken along"] += along

    def _reopened(self, trace: Trace, event: e.ToolCallReopened) -> None:
        self.probes["probe says it did not"] += event.by == "probe"
        self.probes["a person decides"] += event.by.startswith("person")
        if self._ledger.effects[trace.session, event.call]:
            self.wrong(f"{trace.session} {event.call} is sent again, and it took effect")

    def _asked(self, trace: Trace, event: e.DecisionRequested) -> None:
        call = trace.calls.get(event.call)
        self.probes["probe is undecided"] += call is not None and call.name == "pay"

    def _unknown(self, trace: Trace, event: e.ToolCallUnknown) -> None:
        self.counts["unknowns"] += 1

    def _lost(self, trace: Trace, event: e.ToolCallLost) -> None:
        self.probes["lost and sent again"] += 1

    def _withdrawn(self, trace: Trace, event: e.RunWithdrawn) -> None:
        self.probes["cancel before the run began"] += event.code != "busy"
        self.probes["a child in a busy session"] += event.code == "busy"

    def _given_up(self, trace: Trace, event: e.ToolCallCancelled) -> None:
        trace_call = trace.calls.get(event.call)
        if trace_call is not None:
            self._cancelled_kind = trace_call.kind

    _cancelled_kind = ""

    def _run_cancelled(self, trace: Trace, event: e.RunCancelled) -> None:
        kind, self._cancelled_kind = self._cancelled_kind, ""
        interrupted = event.reason.startswith("interrupted by") and kind == "tool"
        self.probes["interrupt during a tool call"] += interrupted

    def _run_failed(self, trace: Trace, event: e.RunFailed) -> None:
        kind, self._cancelled_kind = self._cancelled_kind, ""
        over = event.code == "wall_time_exceeded" and kind == "question"
        self.probes["deadline during a question"] += over

    def _fired(self, trace: Trace, event: e.TimerFired) -> None:
        call = trace.calls.get(event.call)
        if call is not None:
            true_ms = 1_700_000_000_000 + self._loop.now_us // 1000
            self.probes["woken by a skewed clock"] += abs(true_ms - call.due_at) > SKEW_MS_MIN

    # ------------------------------------------------------------------------ calls leaving a node

    def dispatched(self, life: str, task: Task) -> None:
        """A task is given to a worker: it must be owed, durably, unless its node is fenced."""
        if isinstance(task, ModelTask):
            self.counts["models asked"] += 1
            for what in malformed(task.request.messages):
                self.wrong(f"{task.session} {task.call} shows a model: {what}")
        if self.holders.get(task.session) != life:
            self.counts["sent by the fenced"] += 1
            return
        call = self.trace(task.session).calls.get(task.call)
        status = call.status if call is not None else "not owed"
        attempt = call.attempt if call is not None else 0
        if isinstance(task, ModelTask):
            good = status == "intended"
        else:
            good = status == ("unknown" if task.probing else "intended") and attempt == task.attempt
        if not good:
            self.wrong(f"{life} sent {task.session} {task.call}, which is {status} in the log")

    def reported(self, task: Task, report: Report) -> None:
        """A worker tells its node how a call ended."""
        if isinstance(report, ReportToolResult):
            self._reports.add((task.session, report.call, report.attempt, report.ok))

    def proceeded(self, life: str, task: ToolTask) -> None:
        """A `once` task may run: its beginning must be durable."""
        if self.holders.get(task.session) != life:
            return
        call = self.trace(task.session).calls.get(task.call)
        if call is None or call.status != "begun" or call.attempt != task.attempt:
            self.wrong(f"{life} lets {task.session} {task.call} run, and it has not begun")

    # ----------------------------------------------------------------------------------- telemetry

    def emit(self, life: str, name: str, fields: dict[str, Any]) -> None:
        """The runtime tells something of itself."""
        self.told.append((self._loop.now_us, life, name, tuple(fields.items())))
        self.counts[name] += 1
        if name == "command.refused":
            code, command = fields["code"], fields["command"]
            self.probes["late report refused"] += code == "not_held"
            result = command in ("ReportToolResult", "ReportReply") and code == "not_held"
            session = SessionId(*fields["session"].split("/"))
            ended = self.trace(session).ended
            self.probes["result after cancel"] += result and "cancelled" in ended.values()
        elif name == "session.conflict":
            self.probes["conflict and reload"] += 1
        elif name == "session.quarantined":
            self.probes["strike then quarantine"] += "died" in fields["reason"]
            if "died" not in fields["reason"]:
                self.wrong(f"{fields['session']} was set aside: {fields['reason']}")

    def died(self, life: str, site: str | None) -> None:
        """A node dies just now."""
        self.counts["crashes"] += 1
        self.probes["crash between accept and deliver"] += site == "accept.after"
        self.probes["crash during recovery"] += site in ("claim.after", "recovery.scanned")
        for session, holder in self.holders.items():
            if holder != life:
                continue
            trace = self.traces[session]
            self.probes["crash during a retry"] += trace.status == "delayed"
            self.probes["crash with letters owed"] += bool(trace.owed)
            self.probes["crash after a snapshot"] += session in self._snapshots
            for call_id, call in trace.calls.items():
                acted = self._ledger.effects[session, call_id] > 0
                self.probes["crash after effect before record"] += acted
                begun = call.status == "begun" and not acted
                self.probes["crash after begin before effect"] += begun


_EVENTS: dict[type[e.Event], Any] = {
    e.ToolCallSucceeded: Observer._succeeded,
    e.ToolCallFailed: Observer._failed,
    e.ToolCallReopened: Observer._reopened,
    e.ChildRestarted: Observer._restarted,
    e.LettersDelivered: Observer._delivered,
    e.ToolCallUnknown: Observer._unknown,
    e.ToolCallLost: Observer._lost,
    e.DecisionRequested: Observer._asked,
    e.RunWithdrawn: Observer._withdrawn,
    e.ToolCallCancelled: Observer._given_up,
    e.RunCancelled: Observer._run_cancelled,
    e.RunFailed: Observer._run_failed,
    e.TimerFired: Observer._fired,
}
