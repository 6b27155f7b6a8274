"""Logs to project: the stored ones, and stories that together hold every type of event."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from perdure.api.shapes import Event
from perdure.api.timeline import Timeline
from perdure.core import commands as c
from perdure.core import events as e
from perdure.core.agent import Reminders, Subagents
from perdure.core.codec import decode_event
from perdure.core.gate import Verdict
from perdure.core.messages import (
    INHERITED_CONTEXT,
    AssistantMessage,
    ToolMessage,
    ToolRequest,
    UserMessage,
)
from perdure.core.session import due
from tests.core.family import Family
from tests.core.rules import Rules, ask
from tests.core.story import Story, agent, call, compacting, limited, spending

REMINDED = agent(reminders=Reminders(60_000, 1))
DEFINITIONS = {made.digest: made.spec for made in (agent(), REMINDED, compacting(100, 2))}
GOLDEN = Path(__file__).parents[1] / "golden" / "logs"


def simple() -> Story:
    """A question and its answer."""
    story = Story()
    story.message("hello")
    story.reply(text="hi there")
    return story


def with_a_tool() -> Story:
    """A tool call between."""
    story = Story()
    story.message("hello")
    story.reply(call("save", "c1", key="k"), text="let me")
    story.result("save", "saved")
    story.reply(text="done")
    return story


def with_people_and_time() -> Story:
    """A wait and a question in one step, then an answer without words."""
    story = Story()
    story.message("hello")
    story.reply(call("wait", seconds=1.5, reason="rest"), call("ask_human", question="May I?"))
    story.fire()
    story.answer("yes")
    story.reply(call("look"), text="I look.")
    story.result("look", "nothing", ok=False)
    story.reply(text="")
    return story


def with_denials() -> Story:
    """Calls that cannot be: an unknown tool, arguments that are none, an id used twice."""
    story = Story()
    story.message("hello")
    story.reply(
        call("fly"),
        ToolRequest("id-look", "look", {}, "{"),
        call("look", "same"),
        call("look", "same"),
    )
    story.result("look")
    story.reply(text="done")
    return story


def with_failures() -> Story:
    """A model that fails, is asked again, and fails for good."""
    story = Story()
    story.message("hello")
    story.fail("external_dependency", "rate_limited")
    story.fire("backoff")
    story.fail("validation", "not_authorised")
    return story


def with_once_tools() -> Story:
    """Workers that die in mid-call; a probe and a person who say what became of it."""
    story = Story()
    story.message("hello")
    story.reply(call("mail"), call("pay"), call("look"), call("risky"))
    story.lose("look")
    story.result("look")
    for name in ("mail", "pay", "risky"):
        story.begin(name)
        story.lose(name)
    story.probe("mail", "did_not_happen")
    story.begin("mail")
    story.result("mail", "sent")
    story.resolve("pay", "happened", "paid")
    story.reply(text="done")
    return story


def with_compactions() -> Story:
    """A history that is folded once, and once not."""
    story = Story(compacting(100, 2))
    story.message("hello")
    story.reply(call("look"))
    story.result("look")
    story.reply(call("look"), tokens=200)
    story.result("look")
    story.reply(text="a summary")
    story.reply(call("look"), tokens=200)
    story.result("look")
    story.fail("transient", "timeout")
    story.reply(text="done")
    return story


def with_a_memory() -> Story:
    """A call whose worker was lost, and whose next one knows that it is done already."""
    story = Story()
    story.message("hello")
    story.reply(call("save"))
    story.lose("save")
    story.result("save", "saved", remembered=True)
    story.reply(text="done")
    return story


def with_cancellations() -> Story:
    """A run that is steered, one that is interrupted, one that never began, one that is ended."""
    story = Story()
    story.message("one")
    story.message("two", "steer")
    story.message("three")
    story.reply(call("look"))
    story.result("look")
    story.cancel("r3")
    story.reply(call("ask_human", question="?"))
    story.message("four", "interrupt")
    story.cancel()
    return story


def with_approvals() -> Story:
    """Calls that people approve, change, pass on and deny, and one of unknown outcome."""
    story = Story(gate=Rules(save=ask(2, "board"), pay=ask()))
    story.message("hello")
    story.reply(call("save", cents=1), call("pay", cents=2), call("risky"))
    story.begin("risky")
    story.lose("risky")
    story.decide("edit", arguments={"cents": 3})
    story.decide("reassign", roles=("finance",), reason="not mine")
    story.decide(by="ann", held=("finance",))
    story.decide(by="bob", held=("finance",))
    story.decide("deny", "1.1.t1", reason="no")
    story.result("save", "saved")
    story.settle("1.1.t2", "happened", "done")
    story.reply(text="done")
    return story


def with_children() -> Story:
    """Agents that were launched: one is launched again, one fails for good."""
    story = Family(Subagents(on_failure="restart", restarts_max=1))
    story.message("hello")
    story.launch("ann", "bob")
    story.tell(c.ReportDelivered(letters=tuple(one.id for one in story.state.outbox)))
    story.ends(0, "failed", message="no luck")
    story.ends(0, content="found it")
    story.ends(1, "cancelled", code="busy", message="another run is in progress")
    story.reply(text="done")
    return story


def with_reminders() -> Story:
    """A question that nobody answers for a while, and an approval that goes to others."""
    [terms] = [ask(1, "finance").terms]
    later = replace(terms, escalate_ms=90_000, escalate_to=("board",))
    rules = Rules(save=Verdict("ask", "large", "more than 10 euros", later))
    story = Story(REMINDED, rules)
    story.message("hello")
    story.reply(call("ask_human", question="?"), call("save", cents=1))
    for _ in range(3):
        story.now += 60_000
        for one in due(story.state, story.now):
            story.tell(c.FireTimer(call=one))
    story.answer("yes")
    story.decide(name="1.1.t1", by="bob", held=("board",))
    story.result("save", "saved")
    story.reply(text="done")
    return story


def with_budgets() -> Story:
    """A model and a tool that did not fit, and a model that was asked twice."""
    story = Story(spending(tokens_max=2_000, calls_max={"look": 0}))
    story.message("hello")
    story.more(tokens=8_000)
    story.tell(c.ResendModelCall(call="1.1.m1"))
    story.reply(call("look"))
    story.more(calls={"look": 1}, reason="go on")
    story.result("look", "seen")
    story.reply(text="done")
    return story


def with_an_inheritance() -> Story:
    """A fork of another run, and a message with a context."""
    story = Story()
    turn = (AssistantMessage("hm", (ToolRequest("c1", "look"),)), ToolMessage("c1", "look", "seen"))
    origin = e.Origin("support", "s0", "r0", 1, 9, "00")
    story.message(None, inherited=((UserMessage("go"),), turn), fork_of=origin)
    story.reply(text="done")
    data = UserMessage({"tier": "gold"}, kind=INHERITED_CONTEXT)
    context = ((UserMessage("I am Ada"),), (AssistantMessage("Hello, Ada"),), (data,))
    story.message("help", inherited=context)
    story.reply(text="done again")
    return story


def out_of_steps() -> Story:
    """A run that used all of its steps."""
    story = Story(limited(steps_max=1))
    story.message("hello")
    story.reply(call("look"))
    story.result("look")
    return story


STORIES = (
    simple,
    with_a_tool,
    with_people_and_time,
    with_denials,
    with_failures,
    with_once_tools,
    with_compactions,
    with_a_memory,
    with_cancellations,
    with_approvals,
    with_children,
    with_reminders,
    with_budgets,
    with_an_inheritance,
    out_of_steps,
)


def as_json(value: Any) -> Any:
    """Return a value as a client reads it."""
    return msgspec.json.decode(msgspec.json.encode(value))


def stored() -> dict[str, list[e.Event]]:
    """Return the logs of released versions: name -> events."""
    logs = {}
    for path in sorted(GOLDEN.glob("*.jsonl")):
        lines = path.read_bytes().splitlines()[1:]
        bodies = (msgspec.json.encode(msgspec.json.decode(line)["event"]) for line in lines)
        logs[path.stem] = [decode_event(body) for body in bodies]
    return logs


def told() -> dict[str, list[e.Event]]:
    """Return the logs of the stories: name -> events."""
    return {make.__name__: make().log for make in STORIES}


def runs_in(log: Iterable[e.Event]) -> list[str]:
    """Return the runs that a log tells of."""
    return [one.run for one in log if isinstance(one, e.RunStarted | e.RunWithdrawn)]


def timeline_of(log: Iterable[e.Event], run: str = "r1") -> tuple[Timeline, list[Event]]:
    """Return the fold of a log for one run, and the run's events."""
    timeline = Timeline(run, DEFINITIONS, agent_id=7)
    events: list[Event] = []
    for seq, event in enumerate(log, start=1):
        events.extend(timeline.feed(seq, event))
    return timeline, events
