"""Governed sessions by seed: rules, people, doubt and time in every order, and a judge.

`python -m perdure.testing.governance --seeds 2000` plays so many stories on the pure core. A model
asks for payments, rules allow, deny or ask, and change in between; people approve, deny, edit and
pass on, twice, late, at once, on arguments that are others by now; workers die in mid-call, and
state goes through its snapshot. The judge reads the events alone and knows the rules itself: what
was sent without leave is wrong, and so is what was approved and not sent. `--break MUTANT` must be
found out.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from perdure.core import commands as c
from perdure.core import events as e
from perdure.core import ids, session
from perdure.core.agent import AgentSpec, Limits, ToolSpec, define
from perdure.core.decision import Context
from perdure.core.gate import Asked, Terms, Verdict
from perdure.core.ids import SessionId
from perdure.core.messages import ModelReply, ToolRequest
from perdure.core.state import EMPTY, Call, State, decode_snapshot, encode_snapshot
from perdure.testing.mutants import broken

SESSION = SessionId("t", "clerk", "s")
WINDOW_MS = 100_000
WINDOW_USED_MS = WINDOW_MS - WINDOW_MS // 10
EXPIRES_MS = 50_000
STEPS = 120
CENTS = (1, 20, 300)
PEOPLE = {"ann": ("finance",), "bob": ("finance", "board"), "cid": ("board",), "eve": ("sales",)}
CLERK = define(
    AgentSpec(
        "clerk",
        "scripted",
        tools=(
            ToolSpec("pay", "Pay; a person is asked what became of it.", {}, on_unknown="ask"),
            ToolSpec("mail", "Mail; the model is told that it is unknown.", {}),
            ToolSpec("put", "Put.", {}, effect="idempotent", key_window_ms=WINDOW_MS),
            ToolSpec("look", "Look.", {}, effect="read"),
        ),
        limits=Limits(steps_max=1_000),
    )
)


class Till:
    """A policy: small sums are allowed, large ones denied, and people asked about the rest."""

    def __init__(self, version: str, allowed: int, denied: int, terms: Terms) -> None:
        self.version = version
        self.body = version.encode()
        self._allowed = allowed
        self._denied = denied
        self._terms = terms

    def judge(self, asked: Asked) -> Verdict:
        """Judge by the sum."""
        cents = asked.arguments["cents"]
        if cents > self._denied:
            return Verdict("deny", "too much")
        if cents > self._allowed and asked.tool.effect != "read":
            return Verdict("ask", "large", "more than usual", self._terms)
        return Verdict("allow", "small")

    def offers(self, tenant: str, agent: AgentSpec, tool: ToolSpec) -> bool:
        """Show everything."""
        return True


class Broken(Till):
    """A policy that fails whenever it is asked."""

    def judge(self, asked: Asked) -> Verdict:
        """Fail."""
        raise ZeroDivisionError("a rule divides by zero")


POLICIES = (
    Till("one", 10, 100, Terms(1, (), EXPIRES_MS)),
    Till("two", 10, 1_000, Terms(2, ("finance", "board"), EXPIRES_MS)),
    Till("closed", 0, 10, Terms(1, ("board",), EXPIRES_MS)),
    Broken("broken", 0, 0, Terms()),
)


class Pending(NamedTuple):
    """What the judge knows of a call that waits for approval."""

    arguments: dict[str, Any]
    policy: str
    rule: str
    needed: int
    roles: tuple[str, ...]
    expires_at: int
    by: tuple[str, ...]


class Judge:
    """Reads events, and says what was wrong. It trusts no state but its own."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self._asked: dict[str, dict[str, Any]] = {}
        self._pending: dict[str, Pending] = {}
        self._open: dict[str, tuple[str, str, str]] = {}
        self._doubts: dict[str, tuple[str, str]] = {}
        self._sent_at: dict[str, int] = {}

    def read(self, event: e.Event, now: int, gate: Till, by: tuple[str, tuple[str, ...]]) -> None:
        """Take the next event: when, under which policy, and by whom in which roles."""
        self.counts[e.type_of(event)] += 1
        match event:
            case e.ModelReplied():
                for ordinal, request in enumerate(event.tool_calls):
                    self._asked[ids.tool_call(event.call, ordinal)] = request.arguments
            case e.ApprovalRequested():
                self._requested(event)
            case e.ApprovalGiven():
                self._given(event, now, *by)
            case e.ArgumentsEdited():
                waits = self._pending[event.call]
                self._pending[event.call] = waits._replace(arguments=event.arguments, by=())
            case e.ApprovalReassigned():
                self._pending[event.call] = self._pending[event.call]._replace(roles=event.roles)
            case e.ToolCallIntended():
                self._intended(event, gate)
            case e.ToolCallDenied():
                self._pending.pop(event.call, None)
            case e.ToolCallBegun():
                name, digest, _ = self._open[event.call]
                self._open[event.call] = (name, digest, "begun")
            case e.ToolCallReopened():
                name, digest, _ = self._open[event.call]
                self._open[event.call] = (name, digest, "intended")
            case e.ToolCallSucceeded() | e.ToolCallFailed() | e.ToolCallCancelled():
                self._closed(event)
            case e.ToolCallResolved():
                if self._doubts.pop(event.call, None) is None:
                    self.wrong.append(f"{event.call} was resolved, and was in no doubt")

    def sent(self, call: Call, arguments: dict[str, Any], now: int) -> None:
        """A worker is given a call: with which arguments, and when."""
        _, digest, _ = self._open[call.id]
        if digest != ids.arguments_digest(arguments):
            self.wrong.append(f"{call.id} was sent with other arguments than were allowed")
        first = self._sent_at.setdefault(call.id, now)
        if call.effect == "idempotent" and now >= first + WINDOW_USED_MS:
            self.wrong.append(f"{call.id} was sent when its key may have been forgotten")

    def _requested(self, event: e.ApprovalRequested) -> None:
        self._pending[event.call] = Pending(
            event.arguments,
            event.policy,
            event.rule,
            event.needed,
            event.roles,
            event.expires_at,
            (),
        )

    def _given(self, event: e.ApprovalGiven, now: int, who: str, roles: tuple[str, ...]) -> None:
        waits = self._pending[event.call]
        faults = {
            "with other arguments": event.digest != ids.arguments_digest(waits.arguments),
            "twice by the same person": event.by in waits.by,
            "in the name of another": event.by != who,
            "by somebody without the role": bool(waits.roles) and not set(roles) & {*waits.roles},
            "after its time": now >= waits.expires_at,
        }
        self.wrong += [f"{event.call} was approved {how}" for how, is_so in faults.items() if is_so]
        self._pending[event.call] = waits._replace(by=(*waits.by, event.by))

    def _intended(self, event: e.ToolCallIntended, gate: Till) -> None:
        waited = self._pending.pop(event.call, None)
        arguments = self._asked[event.call] if waited is None else waited.arguments
        tool = CLERK.tools_by_name[event.name]
        verdict = _judged(gate, Asked(SESSION.tenant, CLERK.spec, tool, arguments, event.at))
        digest = ids.arguments_digest(arguments)
        repeats = tool.effect != "read" and (event.name, digest) in self._doubts.values()
        rule = verdict.rule if verdict.effect == "ask" else "unresolved_call" if repeats else None
        asked = None if waited is None else waited.rule
        faults = {
            "and a rule denies it": verdict.effect == "deny",
            f"asked by {asked}, and {rule} asks": rule is not None and asked != rule,
        }
        if waited is not None:
            needed = verdict.terms.needed if verdict.effect == "ask" else 1
            is_old = verdict.effect == "ask" and waited.policy != gate.version
            faults |= {
                f"with {waited.by} of {needed}": len(set(waited.by)) < max(needed, waited.needed),
                "approved under another policy": is_old,
            }
        self.wrong += [f"{event.call} was let through, {how}" for how in faults if faults[how]]
        self._open[event.call] = (event.name, digest, "intended")

    def _closed(self, event: Any) -> None:
        self._pending.pop(event.call, None)
        name, digest, status = self._open.pop(event.call, ("", "", ""))
        given_up = isinstance(event, e.ToolCallCancelled) and status == "begun"
        if given_up or getattr(event, "kind", "") == "unknown":
            self._doubts[event.call] = (name, digest)


def _judged(gate: Till, asked: Asked) -> Verdict:
    try:
        return gate.judge(asked)
    except ZeroDivisionError:
        return Verdict("deny", "broken")


class Story:
    """One session, played by chance."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._state: State = EMPTY
        self._waiting: list[c.SendMessage] = []
        self._gate = POLICIES[0]
        self._now = 1_000_000
        self._numbers = 0
        self._requests: dict[str, dict[str, Any]] = {}
        self._digests = [ids.arguments_digest({"cents": cents}) for cents in CENTS]
        self.judge = Judge()
        self.refused: Counter[str] = Counter()

    def play(self) -> None:
        """Play so many turns, or until something is wrong."""
        for _ in range(STEPS):
            self._turn()
            if self.judge.wrong:
                return

    def _turn(self) -> None:
        chance = self._chance
        if chance.random() < 0.05:
            self._gate = chance.choice(POLICIES)
        if chance.random() < 0.3:
            kept = decode_snapshot(encode_snapshot(self._state))
            assert kept is not None
            self._state = kept
        self._now += chance.choice((1, 10, 5_000, 40_000))
        self._fire()
        calls = [*self._state.calls.values()]
        if self._state.status == "idle":
            self._tell(c.SendMessage(id=self._id("r"), content="go"))
        elif not calls or chance.random() < 0.03:
            self._about_the_run()
        else:
            self._about(chance.choice(calls))

    def _about_the_run(self) -> None:
        run = self._state.run
        if run is not None and self._chance.random() < 0.5:
            self._tell(c.CancelRun(id=self._id("c"), run=run.id))
        elif self._state.doubts:
            doubt = self._chance.choice(self._state.doubts)
            if self._chance.random() < 0.5:
                late = c.ReportToolResult(
                    call=doubt.call, attempt=doubt.attempt, ok=True, content="late"
                )
                self._tell(late)
            else:
                self._resolve(doubt.call, doubt.attempt)

    def _about(self, call: Call) -> None:
        match call.kind, call.status:
            case ("model", _):
                self._reply(call)
            case (_, "pending"):
                for _ in range(1 + (self._chance.random() < 0.3)):
                    self._decide(call)
            case (_, "intended"):
                self._run(call)
            case (_, "begun"):
                self._outcome(call)
            case (_, "unknown" | "undecided"):
                self._resolve(call.id, call.attempt)

    def _reply(self, call: Call) -> None:
        if self._chance.random() < 0.15:
            self._tell(c.ReportReply(call=call.id, reply=ModelReply(content="done")))
            return
        requests = tuple(
            ToolRequest(
                f"c{number}",
                self._chance.choice(("pay", "pay", "mail", "mail", "put", "look")),
                {"cents": self._chance.choice(CENTS)},
            )
            for number in range(self._chance.randint(1, 2))
        )
        for ordinal, request in enumerate(requests):
            self._requests[ids.tool_call(call.id, ordinal)] = request.arguments
        self._tell(c.ReportReply(call=call.id, reply=ModelReply(tool_calls=requests)))

    def _decide(self, call: Call) -> None:
        who = self._chance.choice([*PEOPLE])
        decision: Any = self._chance.choices(
            ("approve", "deny", "edit", "reassign"), (10, 1, 1, 1)
        )[0]
        run = self._state.run
        digest = self._chance.choice((None, call.digest, call.digest, *self._digests))
        self._tell(
            c.DecideApproval(
                id=self._id("d"),
                run=run.id if run is not None else "",
                call=call.id,
                decision=decision,
                digest=digest,
                arguments={"cents": self._chance.choice(CENTS)},
                roles=(self._chance.choice(("finance", "board")),),
                held=PEOPLE[who],
                by=who,
            ),
            (who, PEOPLE[who]),
        )

    def _run(self, call: Call) -> None:
        if call.effect == "once":
            self._tell(c.ReportToolBegin(call=call.id, attempt=call.attempt, worker="w"))
            return
        if call.due_at is None or call.due_at > self._now:
            self._send(call)
            self._outcome(call)

    def _send(self, call: Call) -> None:
        if call.effect != "read":
            arguments = call.arguments or self._requests[call.id]
            self.judge.sent(call, arguments, self._now)

    def _outcome(self, call: Call) -> None:
        if call.effect == "once":
            self._send(call)
        if self._chance.random() < 0.5:
            self._tell(c.ReportToolLost(call=call.id, attempt=call.attempt, reason="it died"))
        else:
            self._tell(
                c.ReportToolResult(call=call.id, attempt=call.attempt, ok=True, content="done")
            )

    def _resolve(self, call: str, attempt: int) -> None:
        run = self._state.run
        resolution: Any = self._chance.choice(("happened", "did_not_happen", "tell_model"))
        self._tell(
            c.ResolveCall(
                id=self._id("v"),
                run=run.id if run is not None else "",
                call=call,
                resolution=resolution,
                attempt=attempt,
            )
        )

    def _fire(self) -> None:
        for call in tuple(self._state.calls.values()):
            if call.due_at is not None and call.due_at <= self._now and self._chance.random() < 0.7:
                self._tell(c.FireTimer(call=call.id))

    def _id(self, kind: str) -> str:
        self._numbers += 1
        return f"{kind}{self._numbers}"

    def _tell(self, command: c.AnyCommand, by: tuple[str, tuple[str, ...]] = ("", ())) -> None:
        context = Context(SESSION, CLERK, self._now, 0.0, tuple(self._waiting), self._gate)
        decision = session.decide(self._state, command, context)
        if decision.refusal is not None:
            self.refused[decision.refusal.code] += 1
        if decision.postponed and isinstance(command, c.SendMessage):
            self._waiting.append(command)
        self._waiting = [one for one in self._waiting if one.id not in decision.consumed]
        self._state = decision.state
        for event in decision.events:
            self.judge.read(event, self._now, self._gate, by)


class Found(NamedTuple):
    """What came of many stories."""

    stories: int
    counts: Counter[str]
    refused: Counter[str]
    wrong: tuple[str, ...]
    """`seed: what was wrong`."""

    @property
    def approvals(self) -> int:
        """How many approvals were given."""
        return self.counts["approval_given"]


NEEDED = (
    "approval_requested", "approval_given", "arguments_edited", "approval_reassigned",
    "tool_call_denied", "tool_call_intended", "tool_call_resolved", "tool_call_unknown",
)  # fmt: skip
NEEDED_REFUSALS = (
    "already_decided", "not_entitled", "already_approved", "arguments_changed", "policy_changed",
    "denied",
)  # fmt: skip


def play(seeds: int, mutant: str = "") -> Found:
    """Play stories until something is wrong, if the engine is broken, and else all of them."""
    if mutant:
        with broken(mutant):
            return _play(seeds, stop=True)
    return _play(seeds, stop=False)


def _play(seeds: int, *, stop: bool) -> Found:
    counts, refused, wrong = Counter[str](), Counter[str](), list[str]()
    played = 0
    for seed in range(seeds):
        story = Story(seed)
        try:
            story.play()
        except Exception as error:  # noqa: BLE001  an engine that raises is wrong as well
            wrong.append(f"{seed}: {error!r}")
        played += 1
        counts.update(story.judge.counts)
        refused.update(story.refused)
        wrong += [f"{seed}: {what}" for what in story.judge.wrong]
        if stop and wrong:
            break
    if not wrong:
        missing = [name for name in NEEDED if not counts[name]]
        missing += [name for name in NEEDED_REFUSALS if not refused[name]]
        wrong += [f"all: nothing has led to {name}" for name in missing]
    return Found(played, counts, refused, tuple(wrong))


def main(arguments: Sequence[str] | None = None) -> int:
    """Play stories; the exit code is 0 only if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000)
    parser.add_argument("--break", dest="mutant", default="", metavar="MUTANT")
    options = parser.parse_args(arguments)
    found = play(options.seeds, options.mutant)
    for line in found.wrong[:10]:
        print(f"WRONG  {line}")
    print(f"{found.stories} stories, {found.approvals} approvals, {len(found.wrong)} wrong")
    print(", ".join(f"{name} {count}" for name, count in sorted(found.refused.items())))
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
