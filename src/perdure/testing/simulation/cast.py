"""The agents of the simulated worlds: one model and one set of tools, played by the seed.

The model is the least helpful one that is allowed: what it says is drawn anew whenever it is asked,
so that a repeated request may get another reply. Tools fail before and after they act, take their
time, and hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from perdure.core.agent import ContextPolicy, Limits, Subagents
from perdure.core.messages import AssistantMessage, ModelReply, ToolRequest, Usage, UserMessage
from perdure.ports.models import ModelError, ModelRequest, OnText
from perdure.testing.simulation.ledger import Ledger
from perdure.testing.simulation.weather import Draw, Weather
from perdure.worker import Agent, ToolContext, tool
from perdure.worker.builtin import ask_human, launch_agent, wait

STEPS_PER_RUN_MAX = 6
DEADLINE_MS = 5_000
ASTRAY = 0.06
ASTRAY_SECONDS_MAX = 15.0
TOOL_SECONDS_MAX = 4.0
MODEL_SECONDS_MAX = 6.0
LAUNCHING = 0.5
"""How often the chief launches somebody, where another would call a tool."""


class Stage(Protocol):
    """What the cast sees of the world it plays in."""

    weather: Weather
    ledger: Ledger

    def draw(self) -> float:
        """Return the next number of the seed, in [0, 1)."""
        ...

    def now_us(self) -> int:
        """Return the true time."""
        ...

    def life(self) -> str:
        """Return the name of the process that is at work."""
        ...

    async def travel(self, seconds: float, act: Callable[[], str]) -> str:
        """Have a request arrive later, whatever becomes of its sender; return its answer."""
        ...


class Cast:
    """The agents, made once for all worlds; `stage` is the world they are in just now."""

    def __init__(self) -> None:
        self.stage: Any = None
        model = _Model(self)
        common: dict[str, Any] = {
            "model": model,
            "tools": self._tools(),
            "model_timeout": MODEL_SECONDS_MAX,
        }
        limits = Limits(steps_max=STEPS_PER_RUN_MAX)
        hurried = Limits(steps_max=STEPS_PER_RUN_MAX, wall_ms_max=DEADLINE_MS)
        compact = ContextPolicy(strategy="compact", compact_at_tokens=120, keep_messages=2)
        window = ContextPolicy(strategy="window", window_messages=4)
        self.agents = (
            Agent("plain", limits=limits, **common),
            Agent("hurried", limits=hurried, **common),
            Agent("compact", limits=limits, context=compact, **common),
            Agent("lazy", limits=limits, context=window, resume="lazy", **common),
            Agent("curt", limits=limits, on_failure="stop", **common),
            self._chief(limits, **common),
        )
        self.definitions = {agent.name: agent.definition for agent in self.agents}

    def _chief(self, limits: Limits, **common: Any) -> Agent:
        """Return the one who launches others, and launches those again that fail."""
        common["tools"] = [*common["tools"], launch_agent]
        policy = Subagents(on_failure="restart", restarts_max=1, children_max=6)
        return Agent("chief", limits=limits, subagents=policy, **common)

    def _tools(self) -> list[Any]:
        @tool(effect="read", timeout=TOOL_SECONDS_MAX)
        async def look(n: int, ctx: ToolContext) -> str:
            """Look something up."""
            return await self._act("look", "read", ctx)

        @tool(effect="idempotent", timeout=TOOL_SECONDS_MAX)
        async def save(n: int, ctx: ToolContext) -> str:
            """Save something under a key."""
            return await self._act("save", "idempotent", ctx)

        @tool(effect="once", on_unknown="tell", timeout=TOOL_SECONDS_MAX)
        async def mail(n: int, ctx: ToolContext) -> str:
            """Mail something; nobody can say later whether it went out."""
            return await self._act("mail", "once", ctx)

        @tool(effect="once", on_unknown="ask", timeout=TOOL_SECONDS_MAX)
        async def ship(n: int, ctx: ToolContext) -> str:
            """Ship something; a person can look whether it left."""
            return await self._act("ship", "once", ctx)

        @tool(effect="once", probe=self._was_paid, timeout=TOOL_SECONDS_MAX)
        async def pay(n: int, ctx: ToolContext) -> str:
            """Pay something; the bank can be asked."""
            return await self._act("pay", "once", ctx)

        return [look, save, mail, ship, pay, wait, ask_human]

    async def _act(self, name: str, effect: Any, context: ToolContext) -> str:
        stage: Stage = self.stage
        weather, draw = stage.weather, stage.draw
        stage.ledger.started(stage.now_us(), name, context, stage.life())
        await asyncio.sleep(_while(draw))
        mood = draw() if weather.bad else 1.0
        fails = weather.tool_fails
        if mood < fails * 0.3:
            await asyncio.sleep(3_600)
        if mood < fails * 0.5:
            raise RuntimeError("it did not work")
        life = stage.life()

        def act() -> str:
            return stage.ledger.act(stage.now_us(), name, effect, context, life)

        if effect == "once" and weather.bad and draw() < ASTRAY:
            done = await stage.travel(ASTRAY_SECONDS_MAX * draw(), act)
        else:
            done = act()
        if done == "refused":
            raise RuntimeError("the far end takes this call no more")
        if mood < fails * 0.7:
            await asyncio.sleep(3_600)
        if mood < fails * 0.9:
            raise RuntimeError("it worked, and then something broke")
        await asyncio.sleep(_while(draw))
        return f"{name} done by {context.key[:6]}"

    async def _was_paid(self, key: str, context: ToolContext) -> Any:
        stage: Stage = self.stage
        stage.ledger.probed(stage.now_us(), "pay", context, stage.life())
        await asyncio.sleep(_while(stage.draw))
        mood = stage.draw() if stage.weather.bad else 1.0
        if mood < 0.08:
            raise RuntimeError("the bank does not answer")
        if mood < 0.25:
            return None
        happened = stage.ledger.happened((context.session, context.call), context.attempt)
        return "the bank says: paid" if happened else False


def _while(draw: Draw) -> float:
    """Return how long something takes, in seconds: mostly nothing much, now and then seconds."""
    chance = draw()
    if chance < 0.75:
        return 0.02 * chance
    return 3.0 * (chance - 0.75) if chance < 0.9 else 14.0 * (chance - 0.9)


class _Model:
    """A model that says whatever the seed says."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast

    async def reply(self, request: ModelRequest, on_text: OnText) -> ModelReply:
        """Return a reply, or fail."""
        stage: Stage = self._cast.stage
        draw, weather = stage.draw, stage.weather
        await asyncio.sleep(_while(draw))
        if weather.bad and (mood := draw()) < weather.model_fails:
            _fail(mood / weather.model_fails)
            await asyncio.sleep(3_600)
        usage = Usage(40 * len(request.messages), 10)
        if request.purpose == "compact":
            await asyncio.sleep(draw() if weather.bad else 0)
            empty = weather.bad and draw() < 0.1
            return ModelReply("" if empty else "What was said so far.", usage=usage)
        since = 0
        for message in reversed(request.messages):
            if isinstance(message, UserMessage):
                break
            since += isinstance(message, AssistantMessage)
        if draw() < (0.3 if weather.bad else 0.5) + 0.15 * since:
            on_text("Done.")
            return ModelReply("Done.", usage=usage)
        chance = draw()
        count = 1 if chance < 0.6 else 2 if chance < 0.9 else 3
        if 0.55 < chance < 0.65:
            both: Any = (
                ("wait", {"seconds": 1 + int(3 * draw())}),
                ("ask_human", {"question": "Shall I?"}),
            )
            requests = tuple(ToolRequest(f"c{n}", *one) for n, one in enumerate(both))
            return ModelReply("", requests, "tool_call", usage)
        if any(one.builtin == "launch_agent" for one in request.tools) and draw() < LAUNCHING:
            return ModelReply("", _launches(draw, count), "tool_call", usage)
        requests = tuple(_request(draw, place, weather.bad) for place in range(count))
        return ModelReply("", requests, "tool_call", usage)


def _fail(mood: float) -> None:
    """Raise one of the failures of providers; or return, and then the model hangs."""
    if mood < 0.6:
        raise ModelError("overloaded", status=529)
    if mood < 0.75:
        raise ConnectionError("the connection was reset")
    if mood < 0.85:
        raise ModelError("bad request", status=400)


_CHILDREN = ("plain", "hurried", "lazy", "curt", "nobody")


def _launches(draw: Draw, count: int) -> tuple[ToolRequest, ...]:
    """Return calls that launch agents, some of them in one session."""
    found = []
    for place in range(count):
        name = _CHILDREN[int(len(_CHILDREN) * draw())]
        asked = {"agent_name": name, "message": f"child {place}"}
        if draw() < 0.2:
            asked["session"] = "shared"
        found.append(ToolRequest(f"c{place}", "launch_agent", asked))
    return tuple(found)


_WISHES = (
    ("look", 0.12),
    ("save", 0.30),
    ("mail", 0.40),
    ("ship", 0.50),
    ("pay", 0.76),
    ("wait", 0.86),
    ("ask_human", 0.96),
    ("juggle", 0.98),
)


def _request(draw: Draw, place: int, bad: bool) -> ToolRequest:
    chance = draw() if bad else 0.76 * draw()
    name = next((name for name, upto in _WISHES if chance < upto), None)
    if name is None:
        return ToolRequest(f"c{place}", "save", undecodable='{"n":')
    call_id = "c0" if draw() < 0.03 else f"c{place}"
    if name == "wait":
        return ToolRequest(call_id, name, {"seconds": int(8 * draw())})
    if name == "ask_human":
        return ToolRequest(call_id, name, {"question": "Shall I?"})
    arguments = {"n": "many"} if draw() < 0.02 else {"n": place}
    return ToolRequest(call_id, name, arguments)
