"""Sessions with budgets by seed, and a bank that bills what was really asked.

`python -m perdure.testing.budgets --seeds 2000` plays so many stories on the pure core. Models are
asked and reply, refuse, time out, lose their node and are asked again; people give more, or no
more; runs are cancelled at any moment, and state goes through its snapshot. The bank knows every
request that was sent, counts a token for every byte of it, and bills what it likes of those whose
outcome nobody learns. It must never have billed more than the run was given, nor more than its
purse says. `--break MUTANT` must be found out.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core import session
from perdure.core.agent import AgentSpec, ContextPolicy, Limits, ToolSpec, define
from perdure.core.budget import Budget
from perdure.core.decision import Context
from perdure.core.history import History
from perdure.core.ids import SessionId
from perdure.core.messages import AssistantMessage, Message, ModelReply, ToolRequest, Usage
from perdure.core.prices import BILLION, Rate, cost_micros
from perdure.core.state import EMPTY, Call, State, decode_snapshot, encode_snapshot
from perdure.testing.account import Account
from perdure.testing.mutants import broken

SESSION = SessionId("t", "clerk", "s")
STEPS = 100
REPLY_TOKENS_MAX = 300
FRAME_TOKENS = 4
CLERK = AgentSpec(
    "clerk",
    "m",
    instructions="Look, and tell.",
    tools=(
        ToolSpec("look", "Look.", {}, effect="read"),
        ToolSpec("put", "Put.", {}, effect="idempotent"),
    ),
    limits=Limits(steps_max=1_000),
    context=ContextPolicy("compact", compact_at_tokens=2_000, keep_messages=3),
    max_tokens=REPLY_TOKENS_MAX,
)
FAILURES: tuple[tuple[Any, str, bool], ...] = (
    ("external_dependency", "rate_limited", False),
    ("validation", "status_400", False),
    ("transient", "timeout", True),
    ("transient", "worker_disconnected", True),
    ("external_dependency", "upstream_unavailable", True),
)
"""The class and code of a failure, and whether the bank may bill it."""
_encode = msgspec.json.Encoder().encode


class List:
    """A price list with one model in it."""

    as_of = "2026-11-20"
    known = Rate(3 * BILLION, 15 * BILLION, BILLION // 3, 4 * BILLION)

    def rate(self, model: str) -> Rate | None:
        """Return what the model costs."""
        return self.known if model == "m" else None


class Bank:
    """Bills what was asked, by every byte of it."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.tokens = 0
        self.micros = 0

    def input_tokens(self, messages: Sequence[Message], *, compacting: bool) -> int:
        """Return what a request has: a token for every byte."""
        total = len(CLERK.instructions.encode()) + FRAME_TOKENS
        if not compacting:
            total += sum(len(_encode(tool)) for tool in CLERK.tools)
        for message in messages:
            total += FRAME_TOKENS + _bytes(message.content)
            if isinstance(message, AssistantMessage) and message.tool_calls:
                total += len(_encode(message.tool_calls))
        return total

    def bill(self, usage: Usage) -> None:
        """Bill a call."""
        self.tokens += usage.input_tokens + usage.output_tokens
        self.micros += cost_micros(List.known, usage)

    def perhaps(self, input_tokens: int) -> None:
        """Bill a call of which nobody learns the outcome, or do not."""
        if self._chance.random() < 0.7:
            self.bill(Usage(input_tokens, self._chance.randint(0, REPLY_TOKENS_MAX)))


def _bytes(content: Any) -> int:
    return len(content.encode()) if isinstance(content, str) else len(_encode(content))


class Story:
    """One session, played by chance."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._state: State = EMPTY
        self._waiting: list[c.SendMessage] = []
        self._now = 1_000_000
        self._numbers = 0
        self._budget = self._given()
        self._definition = define(msgspec.structs.replace(CLERK, budget=self._budget))
        self._history = History()
        self._sent: dict[str, int] = {}
        self._bank = Bank(self._chance)
        self._account = Account(self._budget)
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()

    def _given(self) -> Budget:
        chance = self._chance
        return Budget(
            tokens_max=chance.choice((None, 0, 3_000, 20_000)),
            cost_micros_max=chance.choice((None, 20_000, 200_000)),
            calls_max={"look": chance.randint(0, 4)},
        )

    def play(self) -> None:
        """Play so many turns, or until something is wrong."""
        for _ in range(STEPS):
            self._turn()
            if self.wrong:
                return

    def _turn(self) -> None:
        chance, state = self._chance, self._state
        if chance.random() < 0.3:
            kept = decode_snapshot(encode_snapshot(state))
            assert kept is not None
            self._state = state = kept
        calls = [*state.calls.values()]
        if state.status == "idle":
            self._tell(c.SendMessage(id=self._id("r"), content=self._text()))
        elif chance.random() < 0.02:
            self._cancel()
        elif any(call.status == "exceeded" for call in calls):
            self._raise()
        else:
            self._about(chance.choice(calls))

    def _about(self, call: Call) -> None:
        if call.kind in ("model", "compaction"):
            self._answer(call, self._sent[call.id])
        elif call.kind == "backoff":
            self._now = max(self._now, call.due_at or 0)
            self._tell(c.FireTimer(call=call.id))
        else:
            done: Any = {"call": call.id, "attempt": call.attempt, "ok": True}
            self._tell(c.ReportToolResult(content=self._text(), **done))

    def _answer(self, call: Call, input_tokens: int) -> None:
        dice = self._chance.random()
        if dice < 0.15:
            error_class, code, billed = self._chance.choice(FAILURES)
            if billed:
                self._bank.perhaps(input_tokens)
            message = "HTTP 502" if code == "upstream_unavailable" else code
            told: Any = {"error_class": error_class, "code": code, "message": message}
            self._tell(c.ReportModelError(call=call.id, **told))
        elif dice < 0.25:
            self._bank.perhaps(input_tokens)
            self._tell(c.ResendModelCall(call=call.id))
        else:
            self._reply(call, input_tokens)

    def _reply(self, call: Call, input_tokens: int) -> None:
        chance = self._chance
        text = self._text()[:100]
        requests = tuple(
            ToolRequest(f"c{n}", chance.choice(("look", "put")), {"q": n})
            for n in range(chance.choice((0, 1, 1, 2)))
            if call.kind == "model"
        )
        said = _bytes(text) + (len(_encode(requests)) if requests else 0)
        usage = Usage(input_tokens, chance.randint(said, REPLY_TOKENS_MAX))
        self._bank.bill(usage)
        reported = Usage() if chance.random() < 0.05 else usage
        reply = ModelReply(text, requests, usage=reported)
        self._tell(c.ReportReply(call=call.id, reply=reply))

    def _cancel(self) -> None:
        run = self._state.run
        assert run is not None
        for call in self._state.calls.values():
            if call.id in self._sent:
                self._bank.perhaps(self._sent[call.id])
        self._tell(c.CancelRun(id=self._id("c"), run=run.id))

    def _raise(self) -> None:
        run, budget = self._state.run, self._budget
        assert run is not None
        if self._chance.random() < 0.1:
            self._tell(c.DenyBudget(id=self._id("d"), run=run.id, by="ann"))
            return
        command = c.RaiseBudget(
            id=self._id("b"),
            run=run.id,
            tokens=0 if budget.tokens_max is None else self._chance.randint(0, 5_000),
            cost_micros=0 if budget.cost_micros_max is None else self._chance.randint(0, 50_000),
            calls={"look": self._chance.randint(0, 2)},
            by="ann",
        )
        self._tell(command)

    def _text(self) -> str:
        return self._chance.choice(("a", "é", "no ")) * self._chance.choice((1, 10, 100, 400))

    def _id(self, kind: str) -> str:
        self._numbers += 1
        return f"{kind}{self._numbers}"

    def _tell(self, command: c.AnyCommand) -> None:
        prices, waiting = List(), tuple(self._waiting)
        context = Context(SESSION, self._definition, self._now, 0.0, waiting, prices=prices)
        decision = session.decide(self._state, command, context)
        version = self._state.version
        self._state = decision.state
        for seq, event in enumerate(decision.events, start=version + 1):
            self._history.fold(seq, event)
            self._read(event)
        self._check()

    def _read(self, event: e.Event) -> None:
        """Take the next event: a request goes out where a model is to be asked."""
        self.counts[e.type_of(event)] += 1
        if isinstance(event, e.RunStarted):
            self._account = Account(event.budget or Budget())
            self._bank = Bank(self._chance)
        elif wrong := self._account.take(event):
            self.wrong.append(wrong)
        if isinstance(event, e.ModelCallIntended | e.CompactionIntended):
            shown = self._history.messages(event.first, event.upto, event.summary)
            compacting = isinstance(event, e.CompactionIntended)
            self._sent[event.call] = self._bank.input_tokens(shown, compacting=compacting)

    def _check(self) -> None:
        """Compare what was billed with what the run was given, and what its purse says."""
        run, bank = self._state.run, self._bank
        purse = None if run is None else run.purse
        if purse is None:
            self.wrong.append("the run has no purse")
            return
        if differs := self._account.differs(purse):
            self.wrong.append(differs)
        tokens, micros = self._account.given_in_all()
        if tokens is not None and bank.tokens > tokens:
            self.wrong.append(f"{bank.tokens} tokens were billed, of {tokens}")
        if micros is not None and bank.micros > micros:
            self.wrong.append(f"{bank.micros} millionths were billed, of {micros}")
        is_kept = tokens is not None or micros is not None
        if is_kept and not purse.reserved and bank.tokens > purse.tokens:
            self.wrong.append(f"{bank.tokens} tokens were billed, and {purse.tokens} are known")
        if self._state.status == "idle" and purse.reserved:
            self.wrong.append(f"the run has ended, and reserved are {purse.reserved}")


class Found(NamedTuple):
    """What came of many stories."""

    stories: int
    counts: Counter[str]
    wrong: tuple[str, ...]
    """`seed: what was wrong`."""


NEEDED = (
    "budget_exceeded", "budget_raised", "compaction_intended", "context_compacted",
    "model_call_failed", "model_call_resent", "run_cancelled", "run_completed", "tool_call_denied",
)  # fmt: skip


def play(seeds: int, mutant: str = "") -> Found:
    """Play stories until something is wrong, if the engine is broken, and else all of them."""
    if mutant:
        with broken(mutant):
            return _play(seeds, stop=True)
    return _play(seeds, stop=False)


def _play(seeds: int, *, stop: bool) -> Found:
    counts, wrong, played = Counter[str](), list[str](), 0
    for seed in range(seeds):
        story = Story(seed)
        try:
            story.play()
        except Exception as error:  # noqa: BLE001  an engine that raises is wrong as well
            story.wrong.append(repr(error))
        played += 1
        counts.update(story.counts)
        wrong += [f"{seed}: {what}" for what in story.wrong]
        if stop and wrong:
            break
    if not wrong:
        wrong += [f"all: nothing has led to {name}" for name in NEEDED if not counts[name]]
    return Found(played, counts, tuple(wrong))


def main(arguments: Sequence[str] | None = None) -> int:
    """Play stories; the exit code is 0 only if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000)
    parser.add_argument("--break", dest="mutant", default="", metavar="MUTANT")
    options = parser.parse_args(arguments)
    found = play(options.seeds, options.mutant)
    for line in found.wrong[:10]:
        print(f"WRONG  {line}")
    told = ", ".join(f"{found.counts[name]} {name}" for name in NEEDED)
    print(f"{found.stories} stories, {len(found.wrong)} wrong: {told}")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
