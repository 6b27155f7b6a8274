"""The dispatcher gives owed calls to workers, and takes back what is owed no more.

It is called when everything decided for a session is durable, looks at what the state owes, and
starts what no worker has yet. A `once` call that has begun and that no worker here has is never
sent again: it is left to whoever may still be at it, or reported lost if nobody can be.

When a session is lost, because the store did not answer or the lease ran out, its workers go on for
a while: if the session is loaded here again, it finds them still at its calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Literal

from perdure.core.agent import NO_PEERS, AgentSpec, Peers, ToolSpec
from perdure.core.children import gate_for
from perdure.core.codec import decode_event
from perdure.core.commands import (
    Report,
    ReportProbe,
    ReportToolBegin,
    ReportToolLost,
    ReportToolResult,
)
from perdure.core.errors import PerdureError
from perdure.core.gate import NO_RULES, Gate
from perdure.core.history import History
from perdure.core.ids import SessionId
from perdure.core.session import Refusal
from perdure.core.state import Call, State
from perdure.ports import faults
from perdure.ports.clock import Clock
from perdure.ports.models import ModelRequest
from perdure.ports.session_store import SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.ports.workers import ModelTask, Task, ToolTask, Worker
from perdure.ports.workers import OnReport as OnTaskReport
from perdure.runtime.actor import Actor, InFlight

OnReport = Callable[[Actor, Report], Refusal | None]
OnFailure = Callable[[Actor, PerdureError], None]
OnOrphan = Callable[[SessionId, Report], None]
Keep = Literal["all", "begun", "none"]
HISTORY_SLACK_EVENTS = 1_000
EXECUTABLE = frozenset({"intended", "begun", "unknown"})
"""The statuses of calls that a worker can do something for."""
LEFT_MS = 60_000
"""How long a worker goes on with a call whose session was lost."""
Place = tuple[SessionId, str, int, bool]
"""A session, a call of it, the attempt at it, and whether it is a probe."""


class Dispatcher:
    """Owed calls out, reports in."""

    def __init__(
        self,
        workers: Sequence[Worker],
        store: SessionStore,
        telemetry: Telemetry,
        clock: Clock,
        read_batch_records: int,
        on_text: Callable[[Task, str], None],
    ) -> None:
        self._workers = workers
        self._clock = clock
        self._left: dict[Place, InFlight] = {}
        self._store = store
        self._telemetry = telemetry
        self._read_batch_records = read_batch_records
        self._on_text = on_text
        self._on_report: OnReport = lambda actor, report: None
        self._on_failure: OnFailure = lambda actor, error: None
        self._on_orphan: OnOrphan = lambda session, report: None
        self._loading: set[asyncio.Task[None]] = set()
        self.draining = False
        self.may_start: Callable[[], bool] = lambda: True
        self.gate_of: Callable[[str], Gate] = lambda tenant: NO_RULES
        self.peers_of: Callable[[str], Peers] = lambda tenant: NO_PEERS

    def attach(self, on_report: OnReport, on_failure: OnFailure, on_orphan: OnOrphan) -> None:
        """Say who takes reports or refuses them, and the errors of what cannot be dispatched.

        `on_orphan` takes the outcomes of calls whose session was lost.
        """
        self._on_report = on_report
        self._on_failure = on_failure
        self._on_orphan = on_orphan

    def dispatch(self, actor: Actor) -> None:
        """Start what the durable state owes and nobody has; stop what it owes no more."""
        if actor.inflight:
            self._drop_settled(actor)
        for call in actor.state.calls.values():
            if call.status not in EXECUTABLE:
                continue
            flight = actor.inflight.get(call.id)
            if flight is None:
                if not self._start(actor, call):
                    return
            elif call.status == "begun" and not flight.begun:
                self._proceed(flight, call)

    def abandon(self, actor: Actor, keep: Keep = "none") -> None:
        """Stop what workers do for a session, or let them go on for whoever loads it again.

        They go on with `all`, or with `once` calls that have `begun`, or with `none`.
        """
        for flight in tuple(actor.inflight.values()):
            if keep == "all" or (keep == "begun" and flight.begun):
                self._leave(flight)
            else:
                flight.worker.cancel(flight.task)
        actor.inflight.clear()

    def cancel_unbegun(self, actor: Actor) -> None:
        """Stop what can be done again later; leave `once` calls that have begun."""
        for call_id, flight in tuple(actor.inflight.items()):
            if not flight.asked:
                del actor.inflight[call_id]
                flight.worker.cancel(flight.task)

    def _drop_settled(self, actor: Actor) -> None:
        for call_id, flight in tuple(actor.inflight.items()):
            call = actor.state.calls.get(call_id)
            if (
                call is None
                or call.attempt != flight.attempt
                or flight.probing != (call.status == "unknown")
            ):
                del actor.inflight[call_id]
                flight.worker.cancel(flight.task)

    def _start(self, actor: Actor, call: Call) -> bool:
        """Give a call to a worker; False when nothing can be started for the session now."""
        if self._left and self._take_up(actor, call):
            return True
        if self.draining or not self.may_start():
            return False
        if call.due_at is not None and call.due_at <= self._clock.now_ms():
            return True  # its time is over, and the session is told so
        if call.kind == "tool":
            tool = actor.agent.tools_by_name.get(call.name)
            if tool is None or tool.version != call.version:
                self._tool_is_gone(actor, call, tool)
                return False
        need = call.reply if call.kind == "tool" else call.first
        history = actor.history
        if history is None or need < history.first or not history.summarised(call.summary):
            self._load_history(actor, min(need, actor.state.reply or need), call.summary)
            return False
        task = self._task(actor, call, history)
        if call.status == "begun" and isinstance(task, ToolTask):
            return self._resume(actor, call, task)
        for worker in self._workers:
            if worker.serves(task):
                break
        else:
            self._telemetry.emit(
                "call.unserved", session=str(actor.session), call=call.id, kind=call.kind
            )
            return True
        faults.reach("dispatch.before")
        flight = InFlight(actor, task, worker, call.attempt, call.status == "unknown")
        actor.inflight[call.id] = flight
        worker.start(task, self._listener(flight), self._on_text)
        return True

    def _resume(self, actor: Actor, call: Call, task: ToolTask) -> bool:
        """Leave a begun call to whoever may still be at it; False if it is reported lost."""
        for worker in self._workers:
            flight = InFlight(actor, task, worker, call.attempt, probing=False)
            flight.asked = flight.begun = True
            actor.inflight[call.id] = flight
            if worker.resume(task, self._listener(flight), self._on_text, call.worker):
                return True
            del actor.inflight[call.id]
        self._on_report(actor, _lost(call))
        return False

    def _leave(self, flight: InFlight) -> None:
        """Let a worker go on with a call whose session was lost, if one is at it."""
        if not flight.worker.orphan(flight.task):
            return
        place = _place(flight)
        flight.actor = None
        self._left[place] = flight

        def give_up() -> None:
            if self._left.get(place) is flight:
                del self._left[place]
                flight.worker.cancel(flight.task)

        self._clock.call_later(LEFT_MS, give_up)

    def _take_up(self, actor: Actor, call: Call) -> bool:
        """Give a call back to the worker that was left with it; False if there is none."""
        place = (actor.session, call.id, call.attempt, call.status == "unknown")
        flight = self._left.pop(place, None)
        if flight is None:
            return False
        flight.actor = actor
        actor.inflight[call.id] = flight
        if call.status == "begun" and not flight.begun:
            self._proceed(flight, call)
        elif flight.report is not None:
            asyncio.get_running_loop().call_soon(self._reported, flight, flight.report)
        return True

    def _tool_is_gone(self, actor: Actor, call: Call, now: ToolSpec | None) -> None:
        """Answer a call of a tool that the agent's present definition has no more, or as another.

        No other version executes it: its arguments were meant for the one that the model was shown.
        """
        report: Report
        if call.status == "begun":
            report = _lost(call)
        elif call.status == "unknown":
            report = ReportProbe(call=call.id, attempt=call.attempt, verdict="undecided")
        else:
            kind = "unknown_tool" if now is None else "other_version"
            text = f"There is no tool {call.name!r} any more: this call is given up."
            if now is not None:
                text = (
                    f"The tool {call.name!r} is now of version {now.version!r}, and this call was "
                    f"made for version {call.version!r}: it is given up."
                )
            if call.effect != "read":
                text += " It may have been sent before; whether it took effect is unknown."
            report = ReportToolResult(
                call=call.id, attempt=call.attempt, ok=False, content=text, kind=kind
            )
        self._on_report(actor, report)

    def _listener(self, flight: InFlight) -> OnTaskReport:
        return lambda _, report: self._reported(flight, report)

    def _reported(self, flight: InFlight, report: Report) -> None:
        actor, call = flight.actor, flight.task.call
        if actor is None:
            flight.report = report
            if not isinstance(report, ReportToolBegin):
                self._on_orphan(flight.task.session, report)
            return
        if actor.inflight.get(call) is not flight:
            self._telemetry.emit(
                "command.refused",
                session=str(actor.session),
                command=type(report).__name__,
                code="not_held",
            )
            return
        begins = isinstance(report, ReportToolBegin)
        if begins:
            flight.asked = True
            flight.begun = False  # who asks instead of another waits for a word of his own
            flight.report = report
        else:
            del actor.inflight[call]
        refusal = self._on_report(actor, report)
        if begins and refusal is not None and actor.inflight.get(call) is flight:
            del actor.inflight[call]
            flight.worker.cancel(flight.task)

    @staticmethod
    def _proceed(flight: InFlight, call: Call) -> None:
        flight.asked = flight.begun = True
        flight.report = None
        if isinstance(flight.task, ToolTask):
            flight.worker.proceed(flight.task, call.worker)

    def _task(self, actor: Actor, call: Call, history: History) -> Task:
        if call.kind == "tool":
            arguments = call.arguments
            if arguments is None:
                arguments = history.request(call.reply, call.ordinal).arguments
            return self._tool_task(actor, call, arguments)
        spec = actor.agent.spec
        compacting = call.kind == "compaction"
        if call.first - history.first > HISTORY_SLACK_EVENTS:
            history.forget(call.first)
        request = ModelRequest(
            model=spec.model,
            instructions=spec.instructions,
            messages=history.messages(call.first, call.upto, call.summary),
            tools=() if compacting else self._offered(actor, spec),
            max_tokens=spec.max_tokens,
            purpose="compact" if compacting else "reply",
        )
        run, meta = self._run(actor)
        timeout_ms = spec.model_timeout_ms
        return ModelTask(actor.session, run, call.id, spec.name, request, meta, timeout_ms)

    def _offered(self, actor: Actor, spec: AgentSpec) -> tuple[ToolSpec, ...]:
        """Return the tools that a model is shown: those that the policy might let it call."""
        tenant = actor.session.tenant
        try:
            gate = gate_for(self.gate_of(tenant), actor.state.run, self.peers_of(tenant))
            return tuple(tool for tool in spec.tools if gate.offers(tenant, spec, tool))
        except Exception as error:  # noqa: BLE001  a gate that fails shows nothing, as it denies
            self._telemetry.emit("gate.failed", tenant=tenant, error=repr(error))
            return ()

    def _tool_task(self, actor: Actor, call: Call, arguments: dict[str, Any]) -> ToolTask:
        run, meta = self._run(actor)
        return ToolTask(
            session=actor.session,
            run=run,
            call=call.id,
            attempt=call.attempt,
            agent=actor.agent.spec.name,
            tool=call.name,
            effect=call.effect,
            arguments=arguments,
            key=call.key,
            probing=call.status == "unknown",
            timeout_ms=actor.agent.tools_by_name[call.name].timeout_ms,
            meta=meta,
            version=call.version,
        )

    @staticmethod
    def _run(actor: Actor) -> tuple[str, dict[str, Any] | None]:
        run = actor.state.run
        return ("", None) if run is None else (run.id, run.meta)

    def _load_history(self, actor: Actor, first: int, summary: int | None) -> None:
        if not actor.history_loading:
            actor.history_loading = True
            task = asyncio.ensure_future(self._read_history(actor, first, summary))
            self._loading.add(task)
            task.add_done_callback(self._loading.discard)

    async def _read_history(self, actor: Actor, first: int, summary: int | None) -> None:
        """Read the log from `first` to the present, and dispatch once it is all there."""
        history = History(first)
        at = first - 1
        try:
            if summary is not None and summary < first:
                for record in await self._store.read(actor.session, summary - 1, 1):
                    history.fold(record.seq, decode_event(record.body))
            while at < actor.state.version and not actor.gone:
                records = await self._store.read(actor.session, at, self._read_batch_records)
                if not records:
                    break
                for record in records:
                    history.fold(record.seq, decode_event(record.body))
                at = records[-1].seq
        except PerdureError as error:
            if not actor.gone:
                self._on_failure(actor, error)
            return
        finally:
            actor.history_loading = False
        if actor.gone:
            return
        if at == actor.state.version:
            actor.history = history
        if actor.submitted == 0:
            self.dispatch(actor)


def executable(state: State) -> bool:
    """Say whether something can be done for the session now: by a worker, or by the post."""
    for call in state.calls.values():
        if call.status in EXECUTABLE:
            return True
    return bool(state.outbox)


def _place(flight: InFlight) -> Place:
    return flight.task.session, flight.task.call, flight.attempt, flight.probing


def _lost(call: Call) -> Report:
    reason = "its worker was lost after the call had begun"
    return ReportToolLost(call=call.id, attempt=call.attempt, reason=reason)
