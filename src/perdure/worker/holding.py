"""What a worker holds for its server, whatever becomes of the connection between them.

A call goes on while the connection is down, and its result is kept until the server says that it
has it. That is no promise that the server has recorded it, so that results are remembered for a
while after that: who is asked for a call again that it has executed tells how that went.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UnsetType

from perdure.core.agent import ToolSpec
from perdure.core.commands import Report, ReportToolBegin
from perdure.ports.clock import Clock, Timer
from perdure.ports.models import ModelRequest
from perdure.ports.workers import ModelTask, OnReport, OnText, Task, ToolTask
from perdure.ports.workers import Worker as Executor
from perdure.wire import tasks as w
from perdure.wire.frames import FRAME_BYTES_MAX, SERVER_FRAME_BYTES_MAX
from perdure.wire.results import Result, of_report
from perdure.wire.worker import WorkerSide

REMEMBERED_RESULTS_MAX = 1_000
REMEMBERED_BYTES_MAX = 16 * 1024 * 1024
RECORDED_MS = 60_000
"""How long after it acknowledged a result a server may be killed without having recorded it."""
TEXT_CHARS_MAX = 128 * 1024
"""How much text of one reply waits to be told; what is more is left out: the reply has it all.

However it is escaped, it fits into a frame that any server takes.
"""
TEXT_EVERY_MS = 30
"""How long pieces of replies are gathered: nobody reads faster, and a frame for each is dear."""
_ENVELOPE_BYTES = 1024

_Identity = tuple[Any, ...]
_encode = msgspec.json.Encoder().encode


class Held:
    """A call that a server gave us: under way as long as it has no result."""

    __slots__ = (
        "acknowledged_ms", "asked", "attempt", "beats", "heard", "identity", "once", "probe",
        "proceeded", "result", "size_bytes", "task", "task_id",
    )  # fmt: skip

    def __init__(self, identity: _Identity, task_id: str, attempt: int, task: Task | None) -> None:
        self.identity = identity
        self.task_id = task_id
        self.attempt = attempt
        self.task = task
        self.asked = self.proceeded = False
        self.heard = False
        """Whether anything was said of its text."""
        self.beats = 0
        self.probe: Held | None = None
        self.result: Result | None = None
        self.size_bytes = 0
        self.once = isinstance(task, ToolTask) and task.effect == "once" and not task.probing
        self.acknowledged_ms: int | None = None
        """When a server said first that it has the result."""


class Holding:
    """The calls of one worker, and what it has to say of them.

    `wake` is called when there is something to say. At most `concurrency_max` calls are under way;
    while `unacknowledged_max` results or `unacknowledged_bytes_max` bytes of them wait for the
    server's word, it is granted no more.
    """

    def __init__(
        self,
        executor: Executor,
        wake: Callable[[], None],
        clock: Clock,
        *,
        concurrency_max: int,
        unacknowledged_max: int,
        unacknowledged_bytes_max: int,
    ) -> None:
        self._executor = executor
        self._wake = wake
        self._clock = clock
        self._concurrency_max = concurrency_max
        self._credit_step = max(1, concurrency_max // 8)
        self._unacknowledged_max = unacknowledged_max
        self._unacknowledged_bytes_max = unacknowledged_bytes_max
        self._calls: dict[_Identity, Held] = {}
        self._by_task_id: dict[str, Held] = {}
        self._unacknowledged: dict[_Identity, Held] = {}
        self._unacknowledged_bytes = 0
        self._remembered: dict[_Identity, Held] = {}
        self._remembered_bytes = 0
        self._unsaid: dict[_Identity, Held] = {}
        self._begins: list[Held] = []
        self._returning = False
        self._texts: dict[str, str] = {}
        self._gathering: Timer | None = None
        self._granted = 0
        self._frame_bytes_max = SERVER_FRAME_BYTES_MAX
        self.running = 0
        self.draining = False

    # ------------------------------------------------------------------------- from the server

    def take(self, told: w.LlmTask | w.ToolTask) -> None:
        """Execute a call, unless it is under way or was executed already: then tell of that."""
        self._granted = max(0, self._granted - 1)
        if isinstance(told.perdure, UnsetType):
            held = Held((told.task_id,), told.task_id, 1, None)
            self._begin_holding(held)
            why = "the task does not say which call it is, as it must to a worker of perdure"
            self._finish(held, Result(task_id=told.task_id, status="error", error=why))
            return
        detail = told.perdure
        identity = (detail.session, detail.run, detail.call, detail.probe)
        known = self._calls.get(identity)
        if known is not None and not (_is_lost(known) and known.attempt < detail.attempt):
            self._asked_again(known, told.task_id)
            return
        if known is not None:
            self._forget(known)
        held = Held(identity, told.task_id, detail.attempt, _task(told, detail))
        self._begin_holding(held)
        if detail.probe:
            self._look_into(held)
        else:
            self._start(held)

    def proceed(self, task_id: str) -> None:
        """Let a `once` call act: its beginning is durable."""
        held = self._by_task_id.get(task_id)
        if held is not None and isinstance(held.task, ToolTask) and not held.proceeded:
            held.proceeded = True
            self._executor.proceed(held.task)

    def cancel(self, task_id: str) -> None:
        """Stop a call; nothing is said of it any more. One that has ended is still remembered."""
        held = self._by_task_id.get(task_id)
        if held is not None and held.result is not None:
            self.acknowledged((task_id,))
        elif held is not None:
            self._stop(held)

    def acknowledged(self, task_ids: tuple[str, ...]) -> None:
        """Keep results no more: the server has them. They are remembered for a while."""
        for task_id in task_ids:
            held = self._by_task_id.get(task_id)
            if held is None or held.identity not in self._unacknowledged:
                continue
            self._drop_result(held)
            if held.acknowledged_ms is None:
                held.acknowledged_ms = self._clock.monotonic_ms()
            if _is_lost(held) or not _may_be_asked_again(held):
                self._forget(held)
            else:
                self._remember(held)
        if task_ids:
            self._wake()

    def connected(self) -> None:
        """Say what is under way, and everything again that no server may have recorded.

        A server that was killed may have had the result of a `once` call, and not its log: nobody
        asks for such a call again, so its result is brought again that was acknowledged just now.
        """
        self._granted = 0
        since_ms = self._clock.monotonic_ms() - RECORDED_MS
        for held in tuple(self._remembered.values()):
            if held.once and (held.acknowledged_ms or 0) > since_ms and held.result is not None:
                self._deliver(held, held.result)
        self._returning = True
        self._unsaid = dict(self._unacknowledged)
        self._begins = [held for held in self._under_way() if held.asked and not held.proceeded]
        self._wake()

    def refused_frame(self) -> None:
        """Send only what every server takes: this one found a frame too large."""
        self._frame_bytes_max = FRAME_BYTES_MAX

    def disconnected(self) -> None:
        """Keep no words for a server that is gone; the calls go on.

        What has asked to begin waits on: whether its beginning was recorded the server knows.
        """
        self._texts.clear()
        self._begins.clear()

    # --------------------------------------------------------------------------- to the server

    def is_empty(self) -> bool:
        """Say whether no call is under way and the server has every result."""
        return not self.running and not self._unacknowledged

    def unacknowledged(self) -> int:
        """Return how many results the server has not got yet."""
        return len(self._unacknowledged)

    def to_say(self, side: WorkerSide) -> list[str]:
        """Return the frames that say what there is to say now, in the order to send them.

        What the worker has goes first, with what it has results of, and these before credit: a
        server takes nothing for lost that they settle, and gives out nothing anew.
        """
        said: list[str] = []
        if self._returning:
            self._returning = False
            here = [*self._under_way(), *self._unacknowledged.values()]
            said += side.holds(tuple(held.task_id for held in here))
        begins, self._begins = self._begins, []
        said += (side.begin(held.task_id) for held in begins if held.result is None)
        said += self._text_due(side)
        if self._unsaid:
            unsaid, self._unsaid = self._unsaid, {}
            said += self._results(side, list(unsaid.values()))
        if due := self._credit_due():
            self._granted += due
            said += side.credit(due)
        return said

    def beat(self, side: WorkerSide) -> list[str]:
        """Return the frames that say which calls are alive: those that were so a beat ago."""
        said: list[str] = []
        for held in self._under_way():
            if held.beats:
                said += side.progress(held.task_id)
            held.beats += 1
        return said

    # ------------------------------------------------------------------------------- executing

    def _under_way(self) -> list[Held]:
        return [held for held in self._calls.values() if held.result is None]

    def _start(self, held: Held) -> None:
        assert held.task is not None
        self._executor.start(held.task, self._on_report(held), self._on_text(held))

    def _look_into(self, held: Held) -> None:
        """Say what became of a call: from what is known here, else by asking its tool.

        A call that is under way is waited for: its tool could only say that it did not happen yet.
        """
        call = self._calls.get((*held.identity[:-1], False))
        if call is None:
            self._start(held)
        elif call.result is None:
            call.probe = held
        else:
            self._settle(held, call.result)

    def _settle(self, probe: Held, result: Result) -> None:
        if self._calls.get(probe.identity) is not probe:
            return
        if result.status == "ok":
            told = Result(
                task_id=probe.task_id, status="ok", verdict="happened", result=result.result
            )
            self._finish(probe, told)
        else:
            self._start(probe)

    def _on_report(self, held: Held) -> OnReport:
        def on_report(_: Task, report: Report) -> None:
            if isinstance(report, ReportToolBegin):
                held.asked = True
                self._begins.append(held)
                self._wake()
            else:
                self._finish(held, of_report(report, held.task_id))

        return on_report

    def _on_text(self, held: Held) -> OnText:
        def on_text(_: Task, piece: str) -> None:
            waiting = self._texts.get(held.task_id, "")
            if len(waiting) < TEXT_CHARS_MAX:
                self._texts[held.task_id] = (waiting + piece)[:TEXT_CHARS_MAX]
            if self._gathering is None:
                self._gathering = self._clock.call_later(TEXT_EVERY_MS, self._gathered)

        return on_text

    def _gathered(self) -> None:
        self._gathering = None
        if self._texts:
            self._wake()

    def _asked_again(self, held: Held, task_id: str) -> None:
        """Go on with a call under the id that the server knows it by now."""
        if held.task_id != task_id:
            self._by_task_id.pop(held.task_id, None)
            held.task_id = task_id
            self._by_task_id[task_id] = held
        if held.result is not None:
            self._deliver(held, msgspec.structs.replace(held.result, task_id=task_id))
        elif held.asked and not held.proceeded:
            self._begins.append(held)
        self._wake()

    # --------------------------------------------------------------------------------- keeping

    def _begin_holding(self, held: Held) -> None:
        before = self._by_task_id.get(held.task_id)
        if before is not None:
            self._stop(before)
        self._calls[held.identity] = held
        self._by_task_id[held.task_id] = held
        self.running += 1

    def _finish(self, held: Held, result: Result) -> None:
        if self._calls.get(held.identity) is not held or held.result is not None:
            return
        self.running -= 1
        held.task = None
        if not held.heard:
            self._texts.pop(held.task_id, None)
        self._deliver(held, result)
        probe, held.probe = held.probe, None
        if probe is not None:
            self._settle(probe, result)

    def _deliver(self, held: Held, result: Result) -> None:
        """Keep a result until it is acknowledged, and say it."""
        self._drop_result(held)
        held.result = result
        held.size_bytes = len(_encode(result))
        self._unacknowledged[held.identity] = held
        self._unacknowledged_bytes += held.size_bytes
        self._unsaid[held.identity] = held
        self._wake()

    def _remember(self, held: Held) -> None:
        self._remembered[held.identity] = held
        self._remembered_bytes += held.size_bytes
        while (
            len(self._remembered) > REMEMBERED_RESULTS_MAX
            or self._remembered_bytes > REMEMBERED_BYTES_MAX
        ):
            self._forget(next(iter(self._remembered.values())))

    def _drop_result(self, held: Held) -> None:
        """Take a result from wherever it is kept."""
        self._unsaid.pop(held.identity, None)
        if self._unacknowledged.pop(held.identity, None) is not None:
            self._unacknowledged_bytes -= held.size_bytes
        if self._remembered.pop(held.identity, None) is not None:
            self._remembered_bytes -= held.size_bytes

    def _forget(self, held: Held) -> None:
        self._drop_result(held)
        if self._calls.get(held.identity) is held:
            del self._calls[held.identity]
            self.running -= held.result is None
        if self._by_task_id.get(held.task_id) is held:
            del self._by_task_id[held.task_id]

    def _stop(self, held: Held) -> None:
        """Stop a call as far as it can be stopped, and forget it."""
        self._texts.pop(held.task_id, None)
        if held.result is None and held.task is not None:
            self._executor.cancel(held.task)
        self._forget(held)
        probe, held.probe = held.probe, None
        if probe is not None and self._calls.get(probe.identity) is probe:
            self._start(probe)
        self._wake()

    # ---------------------------------------------------------------------------------- saying

    def _results(self, side: WorkerSide, unsaid: list[Held]) -> list[str]:
        """Return the frames of results, as few as hold them."""
        said: list[str] = []
        room = bytes_max = self._frame_bytes_max - _ENVELOPE_BYTES
        together: list[Result] = []
        for held in unsaid:
            if held.result is None:
                continue
            if held.size_bytes > bytes_max:
                said.append(side.result(_untold(held.result, held.size_bytes, bytes_max)))
                continue
            if held.size_bytes >= room:
                said += side.results(tuple(together))
                together, room = [], bytes_max
            together.append(held.result)
            room -= held.size_bytes + 1
        return [*said, *side.results(tuple(together))]

    def _text_due(self, side: WorkerSide) -> list[str]:
        """Return the frames of texts: those that were gathered, or that results are to follow."""
        due = self._texts
        if self._gathering is not None:
            ending = {held.task_id for held in self._unsaid.values()}
            due = {task_id: text for task_id, text in due.items() if task_id in ending}
        said: list[str] = []
        pieces: dict[str, str] = {}
        room = TEXT_CHARS_MAX
        for task_id, text in tuple(due.items()):
            del self._texts[task_id]
            if task_id in self._by_task_id:
                self._by_task_id[task_id].heard = True
            if len(text) > room:
                said += side.text(pieces)
                pieces, room = {}, TEXT_CHARS_MAX
            pieces[task_id] = text
            room -= len(text)
        return said + side.text(pieces) if pieces else said

    def _credit_due(self) -> int:
        """Return how many tasks to grant: what is missing, but not one by one."""
        if (
            self.draining
            or len(self._unacknowledged) >= self._unacknowledged_max
            or self._unacknowledged_bytes >= self._unacknowledged_bytes_max
        ):
            return 0
        due = self._concurrency_max - self.running - self._granted
        return due if due >= self._credit_step or not self._granted else 0


def _untold(result: Result, size_bytes: int, bytes_max: int) -> Result:
    """Return what is told instead of a result that no frame can carry."""
    return Result(
        task_id=result.task_id,
        status="error",
        error=(
            f"The call was executed, but its result has {size_bytes} bytes, more than the "
            f"{bytes_max} that the server takes."
        ),
        kind="result_too_large",
        error_class="validation",
        code="reply_too_large",
    )


def _is_lost(held: Held) -> bool:
    return held.result is not None and held.result.lost is True


def _may_be_asked_again(held: Held) -> bool:
    """Say whether a result may serve a second time: a probe's is only of its moment."""
    return len(held.identity) == 4 and not held.identity[-1]


def _task(told: w.LlmTask | w.ToolTask, detail: w.Detail) -> Task:
    """Return what a server told as a task of ours."""
    if isinstance(told, w.ToolTask):
        return ToolTask(
            session=detail.session,
            run=detail.run,
            call=detail.call,
            attempt=detail.attempt,
            agent=detail.agent,
            tool=told.tool_name,
            effect=detail.effect,
            arguments=told.input,
            key=told.idempotency_key or "",
            probing=detail.probe,
            version=detail.version,
        )
    request = ModelRequest(
        model=told.model,
        instructions=told.system_prompt,
        messages=() if isinstance(told.messages, UnsetType) else told.messages,
        tools=tuple(ToolSpec(tool.name, tool.description, tool.parameters) for tool in told.tools),
        max_tokens=told.max_tokens,
        purpose="compact" if told.purpose == "compact" else "reply",
    )
    return ModelTask(detail.session, detail.run, detail.call, detail.agent, request)
