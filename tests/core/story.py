"""A session told as a story: commands in, what happened out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.agent import AgentSpec, ContextPolicy, Definition, Limits, Peers, ToolSpec, define
from perdure.core.budget import Budget
from perdure.core.gate import NO_RULES, Gate
from perdure.core.history import History, malformed, project
from perdure.core.ids import SessionId
from perdure.core.messages import Message, ModelReply, ToolRequest, Usage
from perdure.core.prices import NO_PRICES, PriceList
from perdure.core.session import Context, Decision, Refusal, decide
from perdure.core.state import EMPTY, State
from perdure.testing.trace import Trace

SESSION = SessionId("t1", "support", "s1")
TOOLS = (
    ToolSpec("look", "Look something up.", {}, effect="read"),
    ToolSpec("save", "Save under a key.", {}, effect="idempotent"),
    ToolSpec("pay", "Pay once; a person decides.", {}, effect="once", on_unknown="ask"),
    ToolSpec("mail", "Mail once; it can be looked up.", {}, effect="once", probe=True),
    ToolSpec("risky", "Undeclared.", {}),
    ToolSpec("wait", "Wait.", {}, builtin="wait"),
    ToolSpec("ask_human", "Ask.", {}, builtin="ask_human"),
    ToolSpec("launch_agent", "Launch.", {}, effect="idempotent", builtin="launch_agent"),
    ToolSpec("list_agents", "List.", {}, effect="read", builtin="list_agents"),
)


def agent(**changes: Any) -> Definition:
    """Return the definition of an agent with every kind of tool."""
    return define(AgentSpec(**{"name": "support", "model": "scripted", "tools": TOOLS, **changes}))


def call(name: str, id: str | None = None, **arguments: Any) -> ToolRequest:
    """Return a tool call as a model asks for it."""
    return ToolRequest(id or f"id-{name}", name, arguments)


class Story:
    """Tells commands to a session and remembers the log."""

    def __init__(
        self,
        definition: Definition | None = None,
        gate: Gate = NO_RULES,
        peers: Sequence[Definition] = (),
        prices: PriceList = NO_PRICES,
    ) -> None:
        self.agent = definition or agent()
        self.gate = gate
        self.peers = Peers({one.spec.name: one for one in (self.agent, *peers)})
        self.prices = prices
        self.state: State = EMPTY
        self.log: list[e.Event] = []
        self.trace = Trace(SESSION)
        self.waiting: list[c.SendMessage] = []
        self.now = 1_000_000
        self.refused: Refusal | None = None
        self._ids = 0

    def tell(self, command: c.AnyCommand) -> list[str]:
        """Decide a command; return the types of the events, and keep them."""
        waiting = tuple(self.waiting)
        context = Context(
            SESSION, self.agent, self.now, 0.0, waiting, self.gate, self.peers, self.prices
        )
        decision: Decision = decide(self.state, command, context)
        self.refused = decision.refusal
        if decision.postponed and isinstance(command, c.SendMessage):
            self.waiting.append(command)
        self.waiting = [m for m in self.waiting if m.id not in decision.consumed]
        self.state = decision.state
        self.log.extend(decision.events)
        for event in decision.events:
            self.trace.step(event)
        return [e.type_of(event) for event in decision.events]

    def message(self, content: str = "hello", mode: e.Mode = "queue", **more: Any) -> list[str]:
        """Send a message; its id is r1, r2, ..."""
        self._ids += 1
        return self.tell(c.SendMessage(id=f"r{self._ids}", content=content, mode=mode, **more))

    def reply(self, *requests: ToolRequest, text: str = "", tokens: int = 10) -> list[str]:
        """Let the model that is asked reply."""
        usage = Usage(input_tokens=tokens, output_tokens=1)
        reply = ModelReply(content=text, tool_calls=requests, usage=usage)
        return self.tell(c.ReportReply(call=self.open("model", "compaction"), reply=reply))

    def fail(self, error_class: Any, code: str, retry_after_ms: int | None = None) -> list[str]:
        """Let the model call fail."""
        return self.tell(
            c.ReportModelError(
                call=self.open("model", "compaction"),
                error_class=error_class,
                code=code,
                message=f"{code}!",
                retry_after_ms=retry_after_ms,
            )
        )

    def begin(self, name: str) -> list[str]:
        """Let a worker begin a `once` call."""
        found = self.find(name)
        return self.tell(c.ReportToolBegin(call=found.id, attempt=found.attempt, worker="w1"))

    def result(self, name: str, content: Any = "ok", ok: bool = True, **more: Any) -> list[str]:
        """Let a worker bring a result."""
        found = self.find(name)
        return self.tell(
            c.ReportToolResult(call=found.id, attempt=found.attempt, ok=ok, content=content, **more)
        )

    def lose(self, name: str) -> list[str]:
        """Let the worker die in mid-call."""
        found = self.find(name)
        return self.tell(c.ReportToolLost(call=found.id, attempt=found.attempt, reason="gone"))

    def probe(self, name: str, verdict: Any, content: Any = None) -> list[str]:
        """Let the tool's probe answer."""
        found = self.find(name)
        return self.tell(
            c.ReportProbe(call=found.id, attempt=found.attempt, verdict=verdict, content=content)
        )

    def fire(self, kind: str = "timer") -> list[str]:
        """Let the time come for the first call of a kind."""
        found = next(one for one in self.state.calls.values() if one.kind == kind)
        self.now = max(self.now, found.due_at or 0)
        return self.tell(c.FireTimer(call=found.id))

    def answer(self, content: str, call: str | None = None) -> list[str]:
        """Answer a question."""
        self._ids += 1
        run = self.state.run.id if self.state.run else "none"
        return self.tell(c.AnswerQuestion(id=f"a{self._ids}", run=run, content=content, call=call))

    def cancel(self, run: str | None = None) -> list[str]:
        """Cancel a run."""
        self._ids += 1
        target = run or (self.state.run.id if self.state.run else "none")
        return self.tell(c.CancelRun(id=f"c{self._ids}", run=target))

    def resolve(self, name: str, resolution: Any, content: Any = None) -> list[str]:
        """Let a person say what became of a call."""
        self._ids += 1
        run = self.state.run.id if self.state.run else "none"
        return self.tell(
            c.ResolveCall(
                id=f"d{self._ids}",
                run=run,
                call=self.find(name).id,
                resolution=resolution,
                content=content,
            )
        )

    def decide(self, decision: Any = "approve", name: str = "1.1.t0", **more: Any) -> list[str]:
        """Let a person, ann if nobody is named, decide on a call that waits for approval."""
        self._ids += 1
        named = {"by": "ann", "run": self.state.run.id if self.state.run else "none", **more}
        return self.tell(
            c.DecideApproval(id=f"d{self._ids}", call=name, decision=decision, **named)
        )

    def more(self, **more: Any) -> list[str]:
        """Let a person, ann if nobody is named, raise the budget of the run."""
        self._ids += 1
        named = {"by": "ann", "run": self.state.run.id if self.state.run else "none", **more}
        return self.tell(c.RaiseBudget(id=f"b{self._ids}", **named))

    def no_more(self, **more: Any) -> list[str]:
        """Let a person, ann if nobody is named, give no more."""
        self._ids += 1
        named = {"by": "ann", "run": self.state.run.id if self.state.run else "none", **more}
        return self.tell(c.DenyBudget(id=f"b{self._ids}", **named))

    def settle(self, call: str, resolution: Any, content: Any = None, **more: Any) -> list[str]:
        """Let a person say what became of a call of which the model was told."""
        self._ids += 1
        run = self.state.run.id if self.state.run else "none"
        told = {"run": run, "call": call, "resolution": resolution, "content": content, **more}
        return self.tell(c.ResolveCall(id=f"d{self._ids}", **told))

    def kinds(self) -> list[str]:
        """Return the types of all events."""
        return [e.type_of(event) for event in self.log]

    def open(self, *kinds: str) -> str:
        """Return the id of the open call of these kinds."""
        return next(one.id for one in self.state.calls.values() if one.kind in kinds)

    def find(self, name: str) -> Any:
        """Return the open call of a tool."""
        return next(one for one in self.state.calls.values() if one.name == name)

    def history(self) -> History:
        """Return the projection of the log."""
        return project((seq, event) for seq, event in enumerate(self.log, start=1))

    def messages(self) -> tuple[Message, ...]:
        """Return what a model would be shown now; assert that it is well formed."""
        found = self.history().messages(self.state.base, self.state.version, self.state.summary)
        assert malformed(found) == []
        return found

    def contents(self) -> list[Any]:
        """Return the contents of the history."""
        return [message.content for message in self.messages()]


def compacting(compact_at_tokens: int, keep_messages: int) -> Definition:
    """Return an agent that compacts."""
    policy = ContextPolicy("compact", 40, compact_at_tokens, keep_messages)
    return agent(context=policy)


def spending(**budget: Any) -> Definition:
    """Return an agent with a budget, whose replies have at most 100 tokens."""
    return agent(model="m", max_tokens=100, budget=Budget(**budget))


def limited(**limits: int) -> Definition:
    """Return an agent with limits."""
    return agent(limits=Limits(**limits))
