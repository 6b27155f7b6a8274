"""Post: what sessions owe one another is put into each other's inboxes.

A letter is sent once the event that it follows from is durable, and again until its session has
noted that it arrived: a node that dies in between leaves it to the next one. Who receives it twice
knows its id from the first time, so nothing comes of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from perdure.core import children
from perdure.core import events as e
from perdure.core.codec import GENERATION, decode_event
from perdure.core.commands import (
    AnyCommand,
    CancelRun,
    EndChild,
    InboxCommand,
    ReportDelivered,
    ReportNoChild,
    SendMessage,
    decode_command,
    encode_command,
)
from perdure.core.errors import (
    Broken,
    KeyReused,
    LimitExceeded,
    NotFound,
    PerdureError,
    Unavailable,
)
from perdure.core.family import Letter
from perdure.core.ids import SessionId
from perdure.core.limits import MESSAGE_BYTES_MAX, RESULT_BYTES_MAX
from perdure.core.runs import queued_row
from perdure.core.session import Refusal
from perdure.ports.clock import Clock
from perdure.ports.session_store import InboxEntry, SessionStore
from perdure.ports.telemetry import Telemetry
from perdure.runtime.actor import Actor
from perdure.runtime.bringing import pause

AGAIN_MS = 500
"""After how long a store is asked again that did not answer."""
OnDone = Callable[[Actor, AnyCommand], Refusal | None]
OnFailure = Callable[[Actor, PerdureError], None]


class Post:
    """Letters of the sessions that this node runs."""

    def __init__(self, store: SessionStore, clock: Clock, telemetry: Telemetry) -> None:
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._on_done: OnDone = lambda actor, command: None
        self._deliver: Callable[[SessionId, InboxCommand], None] = lambda session, command: None
        self._on_failure: OnFailure = lambda actor, error: None
        self._sending: dict[Actor, asyncio.Task[None]] = {}
        self.draining = False

    def attach(
        self,
        on_done: OnDone,
        deliver: Callable[[SessionId, InboxCommand], None],
        on_failure: OnFailure,
    ) -> None:
        """Say who is told that letters were delivered, and who takes in what was accepted.

        `on_failure` takes the errors of letters that can never be: what they owe is not forgotten.
        """
        self._on_done = on_done
        self._deliver = deliver
        self._on_failure = on_failure

    def dispatch(self, actor: Actor) -> None:
        """Send what the durable state of a session owes, if that is not under way already."""
        if actor.state.outbox and actor not in self._sending and not self.draining:
            task = asyncio.ensure_future(self._send(actor, actor.state.outbox))
            self._sending[actor] = task
            task.add_done_callback(lambda _: self._sent(actor, task))

    async def close(self) -> None:
        """Send nothing more; what is under way is sent again by whoever runs the session next."""
        self.draining = True
        for task in tuple(self._sending.values()):
            task.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)

    async def _send(self, actor: Actor, letters: tuple[Letter, ...]) -> None:
        """Deliver letters in order: nobody is told to stop before being told to start."""
        session = actor.session
        refused: list[ReportNoChild] = []
        for letter in letters:
            while True:
                try:
                    await self._deliver_one(actor, letter)
                except Unavailable as error:
                    if isinstance(error, Broken) or actor.gone:
                        return
                    told = str(error)
                    self._telemetry.emit("store.unavailable", session=str(session), error=told)
                    await pause(self._clock, AGAIN_MS)
                    continue
                except KeyReused:
                    pass  # it is there, as another version of the program wrote it
                except LimitExceeded as error:
                    self._telemetry.emit(
                        "letter.refused", session=str(session), letter=letter.id, error=str(error)
                    )
                    refused.append(_not_started(actor, letter, error))
                except Exception as error:  # noqa: BLE001  nobody else would see it
                    if not actor.gone:
                        why = f"the letter {letter.id} cannot be sent: {error!r}"
                        self._on_failure(actor, PerdureError(why))
                    return
                break
        self._sent(actor, asyncio.current_task())
        self._on_done(actor, ReportDelivered(letters=tuple(letter.id for letter in letters)))
        for report in refused:
            self._on_done(actor, report)

    def _sent(self, actor: Actor, task: asyncio.Task[None] | None) -> None:
        if self._sending.get(actor) is task:
            del self._sending[actor]

    async def _deliver_one(self, actor: Actor, letter: Letter) -> None:
        """Put a letter into an inbox. Raises what the store says of it."""
        to = SessionId(actor.session.tenant, letter.agent, letter.key)
        command, now = await self._command(actor, letter), self._clock.now_ms()
        row = queued_row(to, command, now) if isinstance(command, SendMessage) else None
        body = encode_command(command)
        if row is not None and len(body) > MESSAGE_BYTES_MAX:
            raise LimitExceeded(
                f"the message is {len(body)} bytes long; at most MESSAGE_BYTES_MAX = "
                f"{MESSAGE_BYTES_MAX} bytes are accepted"
            )
        receipt = await self._store.accept(InboxEntry(command.id, to, body, now), row, GENERATION)
        if not receipt.duplicate:
            self._deliver(to, decode_command(body, now))

    async def _command(self, actor: Actor, letter: Letter) -> InboxCommand:
        """Return what a letter says, from the log of the session that sends it."""
        if letter.what == "cancel":
            return CancelRun(id=letter.id, run=letter.run, reason="nobody waits for it any more")
        event = await self._event(actor.session, letter.seq)
        if letter.what == "start":
            assert isinstance(event, e.ChildLaunched)
            return children.message(event, letter.run)
        told: dict[str, Any] = {"id": letter.id, "run": letter.run, "call": letter.call}
        told["child"] = letter.id.partition(":")[2]
        command = EndChild(**told, **await self._end(actor, event))
        if len(encode_command(command)) <= RESULT_BYTES_MAX:
            return command
        large = f"its answer exceeds RESULT_BYTES_MAX = {RESULT_BYTES_MAX} bytes"
        return EndChild(**told, status="cancelled", code="answer_too_large", message=large)

    async def _end(self, actor: Actor, event: e.Event) -> dict[str, Any]:
        if isinstance(event, e.RunCompleted):
            reply = await self._event(actor.session, event.answer)
            assert isinstance(reply, e.ModelReplied)
            return {"status": "completed", "content": reply.content}
        if isinstance(event, e.RunFailed):
            return {"status": "failed", "code": event.code, "message": event.message}
        assert isinstance(event, e.RunCancelled | e.RunWithdrawn)
        code = event.code if isinstance(event, e.RunWithdrawn) else "cancelled"
        return {"status": "cancelled", "code": code, "message": f"cancelled: {event.reason}"}

    async def _event(self, session: SessionId, seq: int) -> e.Event:
        for record in await self._store.read(session, seq - 1, 1):
            return decode_event(record.body)
        raise NotFound(f"event {seq} of {session} is missing")


def _not_started(actor: Actor, letter: Letter, error: PerdureError) -> ReportNoChild:
    call = next(
        (
            call.id
            for call in actor.state.calls.values()
            if call.child is not None and call.child.run == letter.run
        ),
        "",
    )
    return ReportNoChild(call=call, child=letter.run, message=str(error))
