"""What `decide` is told and what it says: the context, the draft of a commit, the decision."""

from __future__ import annotations

import msgspec

from perdure.core import events as e
from perdure.core.agent import NO_PEERS, Definition, Peers
from perdure.core.commands import SendMessage
from perdure.core.evolve import evolve
from perdure.core.gate import NO_RULES, Gate
from perdure.core.ids import SessionId
from perdure.core.prices import NO_PRICES, PriceList
from perdure.core.state import Call, State


class Context(msgspec.Struct, frozen=True, gc=False):
    """What a decision depends on besides the state: all of it data.

    `now` is in milliseconds since 1970; `chance` is in [0, 1); `waiting` are the accepted messages
    that the session has not consumed yet, oldest first. `gate` is the policy in force, `peers` are
    the agents of the tenant, and `prices` those of models.
    """

    session: SessionId
    agent: Definition
    now: int
    chance: float = 0.0
    waiting: tuple[SendMessage, ...] = ()
    gate: Gate = NO_RULES
    peers: Peers = NO_PEERS
    prices: PriceList = NO_PRICES


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why nothing happened."""

    code: str
    message: str


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The events of one step commit and the state after them, or why there are none.

    `consumed` are the inbox entries that this commit settles. A postponed command stays in the
    inbox and is offered again through `Context.waiting`.
    """

    state: State
    events: tuple[e.Event, ...] = ()
    consumed: tuple[str, ...] = ()
    refusal: Refusal | None = None
    postponed: bool = False


class Draft:
    """Events under construction: each is folded at once, so that the next sees its effect."""

    __slots__ = ("consumed", "context", "events", "now", "state", "waiting")

    def __init__(self, state: State, context: Context) -> None:
        self.state = state
        self.context = context
        self.now = context.now
        self.events: list[e.Event] = []
        self.consumed: list[str] = []
        self.waiting = list(context.waiting)

    def add(self, event: e.Event) -> None:
        """Append an event and fold it."""
        self.state = evolve(self.state, event)
        self.events.append(event)

    def call(
        self, call_id: str, kinds: tuple[str, ...], *statuses: str, attempt: int | None = None
    ) -> Call | Refusal:
        """Return an open call of one of these kinds and statuses, or why there is none."""
        call = self.state.calls.get(call_id)
        if call is None or call.kind not in kinds:
            return Refusal("not_owed", f"call {call_id!r} is not owed: it was answered or given up")
        if call.status not in statuses:
            return Refusal(
                "not_owed", f"call {call_id!r} is {call.status}, not {' or '.join(statuses)}"
            )
        if attempt is not None and call.attempt != attempt:
            return Refusal("stale_attempt", f"call {call_id!r} is at attempt {call.attempt} by now")
        return call

    def close_calls(self, text: str) -> None:
        """Answer every open call of the step, so that the history stays well formed."""
        for call in tuple(self.state.calls.values()):
            if call.kind in ("tool", "timer", "question", "child"):
                self.add(
                    e.ToolCallCancelled(
                        at=self.now, call=call.id, content=cancelled_text(call, text)
                    )
                )

    def decision(self, own: tuple[str, ...]) -> Decision:
        """Return what was drafted; it settles also the inbox entry that caused it, `own`."""
        consumed = tuple(self.consumed)
        if own and own[0] not in consumed:
            consumed += own
        return Decision(self.state, tuple(self.events), consumed)


def cancelled_text(call: Call, text: str) -> str:
    """Return what the model is told of a call that was given up, without guessing its outcome."""
    if call.status in ("begun", "unknown", "undecided"):
        return f"{text} The call had begun: whether it took effect is unknown. Do not repeat it."
    if call.status == "pending":
        return f"{text} It waited for approval and was not made."
    if call.child is not None:
        return f"{text} The agent {call.child.name!r} was at it, and is told to stop."
    if call.status == "exceeded":
        return f"{text} It did not fit into the budget and was not made."
    if call.kind == "tool" and call.effect != "read":
        return f"{text} The call may have been sent; whether it took effect is unknown."
    return text
