"""Broken rules and a broken runtime."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from perdure.core.commands import ReportProbe, ReportToolLost, ReportToolResult, ResolveCall
from perdure.core.decision import Context, Decision, Refusal
from perdure.core.events import ToolCallSucceeded
from perdure.core.history import History
from perdure.core.ids import SessionId
from perdure.core.messages import AssistantMessage
from perdure.core.state import State
from perdure.ports.session_store import CommitDone, StepCommit
from perdure.ports.workers import Task, ToolTask
from perdure.runtime.actor import Actor
from perdure.runtime.dispatcher import Dispatcher
from perdure.runtime.tenancy import Tenancy
from perdure.testing.mutation.patches import Patches
from perdure.testing.mutation.stores import STORES, commit_late
from perdure.worker import LocalWorker

Decide = Callable[[State, Any, Context], Decision]


def _rule(patches: Patches, wrap: Callable[[Decide], Decide]) -> None:
    patches.name("perdure.core.session", "decide", wrap)


def _had_begun(state: State, command: Any) -> bool:
    call = state.calls.get(getattr(command, "call", None) or "")
    return isinstance(command, ReportToolLost) and call is not None and call.status == "begun"


def once_sent_again(patches: Patches) -> None:
    """Send a `once` call again that had begun when its worker was lost."""

    def wrap(original: Decide) -> Decide:
        def decide(state: State, command: Any, context: Context) -> Decision:
            first = original(state, command, context)
            if not _had_begun(state, command):
                return first
            call = first.state.calls.get(command.call)
            if call is None:
                return first
            answer: Any
            if call.status == "unknown":
                answer = ReportProbe(call=call.id, attempt=call.attempt, verdict="did_not_happen")
            else:
                run = "" if state.run is None else state.run.id
                answer = ResolveCall(id="", run=run, call=call.id, resolution="did_not_happen")
            second = original(first.state, answer, context)
            return replace(first, state=second.state, events=first.events + second.events)

        return decide

    _rule(patches, wrap)


def unknown_dropped(patches: Patches) -> None:
    """Take a call for not done, of which nobody knows whether it was."""

    def wrap(original: Decide) -> Decide:
        def decide(state: State, command: Any, context: Context) -> Decision:
            if _had_begun(state, command):
                command = ReportToolResult(
                    call=command.call,
                    attempt=command.attempt,
                    ok=False,
                    content="The call was not made.",
                    kind="raised",
                )
            return original(state, command, context)

        return decide

    _rule(patches, wrap)


def begun_calls_forgotten(patches: Patches) -> None:
    """Do nothing about calls that had begun when their worker was lost."""

    def wrap(original: Decide) -> Decide:
        def decide(state: State, command: Any, context: Context) -> Decision:
            if _had_begun(state, command):
                return Decision(state, refusal=Refusal("not_owed", "nobody remembers this call"))
            return original(state, command, context)

        return decide

    _rule(patches, wrap)


def late_outcome_accepted(patches: Patches) -> None:
    """Let the outcome of an earlier attempt settle the present one."""

    def wrap(original: Decide) -> Decide:
        def decide(state: State, command: Any, context: Context) -> Decision:
            call = state.calls.get(getattr(command, "call", None) or "")
            attempt = getattr(command, "attempt", None)
            if call is not None and attempt is not None:
                command = replace(command, attempt=call.attempt)
            return original(state, command, context)

        return decide

    _rule(patches, wrap)


def duplicate_result_accepted(patches: Patches) -> None:
    """Record a result as often as it is delivered: here, twice."""

    def wrap(original: Decide) -> Decide:
        def decide(state: State, command: Any, context: Context) -> Decision:
            decision = original(state, command, context)
            again = [one for one in decision.events if isinstance(one, ToolCallSucceeded)]
            if not again:
                return decision
            after = replace(decision.state, version=decision.state.version + len(again))
            return replace(decision, state=after, events=(*decision.events, *again))

        return decide

    _rule(patches, wrap)


def split_tool_pair(patches: Patches) -> None:
    """Cut a history between a reply and the results of the calls it asked for."""

    def messages(original: Any) -> Any:
        def cut_anywhere(self: History, first: int, *more: Any, **named: Any) -> Any:
            found = original(self, first, *more, **named)
            asks = isinstance(found[1], AssistantMessage) if len(found) > 1 else False
            return (found[0], *found[2:]) if first > 1 and asks and found[1].tool_calls else found

        return cut_anywhere

    patches.method(History, "messages", messages)


def _rekeyed(patches: Patches, key_of: Callable[[LocalWorker, ToolTask], str]) -> None:
    """Hand workers another key than the one that was recorded."""

    def start(original: Any) -> Any:
        def rekeying(self: LocalWorker, task: Task, on_report: Any, on_text: Any) -> None:
            if not isinstance(task, ToolTask):
                original(self, task, on_report, on_text)
                return
            other = replace(task, key=key_of(self, task))

            def reported(_: Task, report: Any) -> None:
                on_report(task, report)

            original(self, other, reported, on_text)

        return rekeying

    patches.method(LocalWorker, "start", start)


def key_includes_attempt(patches: Patches) -> None:
    """Give every attempt of a call a key of its own."""
    _rekeyed(patches, lambda worker, task: f"{task.key}-{task.attempt}")


def key_not_stable(patches: Patches) -> None:
    """Give every life of a process keys of its own."""
    lives: WeakKeyDictionary[LocalWorker, int] = WeakKeyDictionary()

    def key_of(worker: LocalWorker, task: ToolTask) -> str:
        life = lives.setdefault(worker, len(lives))
        return f"{task.key}-{os.getpid()}-{life}"

    _rekeyed(patches, key_of)


def dispatch_before_durable(patches: Patches) -> None:
    """Send calls as soon as they are decided, while their intents are being written."""
    known: dict[tuple[int, SessionId], _Known] = {}

    def dispatch(original: Any) -> Any:
        def noting(self: Dispatcher, actor: Actor) -> None:
            key = (id(asyncio.get_running_loop()), actor.session)
            known[key] = _Known(original, self, actor)
            original(self, actor)

        return noting

    def commit(original: Any) -> Any:
        def hasty(self: Any, step: StepCommit, done: CommitDone) -> None:
            original(self, step, done)
            loop = asyncio.get_running_loop()
            one = known.get((id(loop), step.session))
            if one is not None and one.actor.token == step.token:
                loop.call_soon(one.send)

        return hasty

    commit_late(patches)
    patches.method(Dispatcher, "dispatch", dispatch)
    for store in STORES:
        patches.method(store, "commit", commit)


class _Known:
    """A session that was dispatched once, and can be again."""

    def __init__(self, dispatch: Any, dispatcher: Dispatcher, actor: Actor) -> None:
        self.actor = actor
        self._dispatch = dispatch
        self._dispatcher = dispatcher

    def send(self) -> None:
        """Dispatch what the session owes now."""
        if not self.actor.gone:
            self._dispatch(self._dispatcher, self.actor)


def idempotency_key_ignored(patches: Patches) -> None:
    """Begin a run for every message, though its key is known."""

    def send(original: Any) -> Any:
        async def forgetful(self: Tenancy, *more: Any, **named: Any) -> Any:
            named.pop("idempotency_key", None)
            return await original(self, *more, **named)

        return forgetful

    patches.method(Tenancy, "send", send)
