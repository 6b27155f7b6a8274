"""A whole server in a test: the real application, two tenants, and a worker without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from perdure.adapters.catalog.memory import MemoryCatalog
from perdure.adapters.cluster.memory import Hub, MemoryCluster
from perdure.adapters.stores.memory import MemoryStore
from perdure.api.operations import PREFIX, Operation
from perdure.core.messages import AssistantMessage
from perdure.ports import entries
from perdure.ports.catalog import TenantCatalog
from perdure.runtime.settings import NodeSettings
from perdure.server.app import application
from perdure.server.egress import Egress
from perdure.server.keys import Keyring
from perdure.server.limits import TenantLimits
from perdure.server.sealing import Seal
from perdure.server.service import Service
from perdure.server.setup import ensure_tenant
from perdure.testing.clock import FakeClock
from perdure.wire.results import Result
from perdure.wire.tasks import LlmTask, ToolTask
from tests.runtime.world import Telemetry
from tests.server.chance import fresh
from tests.server.peers import Does, Peer, registration

SCOPES = ("admin", "run", "read", "worker")
TENANTS = ("acme", "zeta")
BOT = {"name": "bot", "system_prompt": "You help.", "status": "idle"}


class HouseClock:
    """The time of all, as one server has it: while it is stopped, so is its process."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._stopped = False
        self._missed: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> Any:
        """Call back later, or when the clock goes on."""

        def call() -> None:
            if self._stopped:
                self._missed.append(timer.callback or _nothing)
            else:
                (timer.callback or _nothing)()

        timer = Timer(callback)
        self._clock.call_later(delay_ms, call)
        return timer

    def stop(self) -> None:
        """Let nothing happen by itself any more, as SIGSTOP does."""
        self._stopped = True

    def go_on(self) -> None:
        """Let happen what was missed, as SIGCONT does."""
        self._stopped = False
        missed, self._missed = self._missed, []
        for call in missed:
            call()


class Timer:
    """A call that may be cancelled."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Call no more."""
        self.callback = None


def _nothing() -> None:
    """Stand for a call that was cancelled."""


class Unheard(MemoryCluster):
    """A cluster whose bus loses everything."""

    def send(self, node: str | None, message: bytes) -> None:
        """Lose a message."""


class Street:
    """What servers share that are one: time, the store of sessions, the catalog, and a hub.

    Unless a test is about the bus, it loses everything: nothing may depend on it.
    """

    def __init__(self, cluster: type[MemoryCluster] = Unheard) -> None:
        self.cluster = cluster
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.catalog = MemoryCatalog(self.clock.now_ms)
        self.hub = Hub(self.clock.now_ms)
        self.keys: dict[tuple[str, str], str] = {}

    @asynccontextmanager
    async def house(
        self, egress: Egress | None = None, name: str = "", **limits: Any
    ) -> AsyncIterator[House]:
        """Open another server here; the keys of the first are good at all of them."""
        async with _opened(House(self.catalog, egress, self, name, **limits), self.keys) as h:
            yield h


class House:
    """One server. What is asked of it is asked over HTTP; only workers come in by the back."""

    def __init__(
        self,
        catalog: MemoryCatalog | None,
        egress: Egress | None = None,
        street: Street | None = None,
        name: str = "",
        **limits: Any,
    ) -> None:
        self.clock: Any = FakeClock() if street is None else HouseClock(street.clock)
        self.telemetry = Telemetry()
        self.catalog = catalog or MemoryCatalog(self.clock.now_ms)
        pepper = b"p" * 32
        self.ring = Keyring(self.catalog, pepper, fresh)
        self.service = Service(
            MemoryStore(self.clock) if street is None else street.store,
            self.catalog,
            self.ring,
            Seal(pepper, fresh),
            self.clock,
            self.telemetry,
            fresh,
            settings=NodeSettings(linger_ms=100),
            limits=TenantLimits(**limits),
            egress=egress or Egress(resolver=_nowhere),
            cluster=None if street is None else street.cluster(street.hub),
            name=name,
            operator="acme",
        )
        self.app = application(self.service)
        self.keys: dict[tuple[str, str], str] = {}
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://house")

    async def furnish(self) -> None:
        """Make the tenants and a key of each scope for each."""
        for slug in TENANTS:
            tenant: TenantCatalog = await ensure_tenant(self.catalog, slug)
            for scope in SCOPES:
                issued = await self.ring.issue(tenant, scope)  # type: ignore[arg-type]
                self.keys[slug, scope] = issued.token

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        tenant: str = "acme",
        scope: str | None = "admin",
        headers: dict[str, str] | Sequence[tuple[str, str]] = (),
        content: bytes | None = None,
        **query: Any,
    ) -> httpx2.Response:
        """Ask, with the key of a tenant and scope; no answer may ever be a 5xx."""
        sent = httpx2.Headers(headers)
        if scope is not None:
            sent["Authorization"] = f"Bearer {self.keys[tenant, scope]}"
        if body is not None:
            content = json.dumps(body).encode()
        url = path if path.startswith(("/health", "/ready", "/docs", "/openapi")) else PREFIX + path
        self.clock.advance(1)
        asked = self.http.request(method, url, content=content, headers=sent, params=query or None)
        answer = await asyncio.wait_for(asked, 10)
        assert answer.status_code < 500, f"{method} {url}: {answer.status_code} {answer.text}"
        return answer

    async def make(self, path: str, body: Any, **more: Any) -> Any:
        """Make a thing, and return it."""
        answer = await self.ask("POST", path, body, **more)
        assert answer.status_code in (201, 202), answer.text
        return answer.json().get("data", answer.json())

    async def get(self, path: str, **more: Any) -> Any:
        """Return the data of a thing."""
        answer = await self.ask("GET", path, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    async def run(
        self, agent: int, content: Any = "go", *, tenant: str = "acme", **more: Any
    ) -> int:
        """Send a message, and return its run once it has nothing to do by itself."""
        body = {"content": content, **more}
        made = await self.make(f"/agents/{agent}/messages", body, tenant=tenant)
        await self.settle()
        return int(made["run_id"])

    def worker(self, does: Does, tenant: str = "acme", worker_id: str = "w1", **more: Any) -> Peer:
        """Let a worker join that plays the model."""
        what = registration(worker_id, **more)
        return Peer(self.service.pool, what, tenant=tenant, does=does)

    async def settle(self, turns: int = 60) -> None:
        """Let everything happen that needs no time."""
        for _ in range(turns):
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, and what it brings happen."""
        for _ in range(10):
            self.clock.advance(int(seconds * 100))
            await self.settle(20)


@asynccontextmanager
async def house(
    catalog: MemoryCatalog | None = None, egress: Egress | None = None, **limits: Any
) -> AsyncIterator[House]:
    """Open a server that has two tenants, `acme` and `zeta`; its webhooks get nowhere."""
    async with _opened(House(catalog, egress, **limits), {}) as opened:
        yield opened


@asynccontextmanager
async def _opened(opened: House, keys: dict[tuple[str, str], str]) -> AsyncIterator[House]:
    if not keys:
        await opened.furnish()
        keys |= opened.keys
    opened.keys = keys
    await opened.service.start()
    try:
        yield opened
    finally:
        await opened.service.stop()
        await opened.http.aclose()


async def _nowhere(host: str, port: int) -> list[str]:
    return []


def said(task: LlmTask) -> list[Any]:
    """Return the contents that a model was shown."""
    assert isinstance(task.messages, tuple)
    return [message.content for message in task.messages]


def calls(task: LlmTask, name: str, **arguments: Any) -> Result:
    """Reply as a model that calls a tool."""
    call = {"id": "call_1", "name": name, "arguments": arguments}
    return Result(task_id=task.task_id, status="ok", content=None, tool_calls=[call])


def says(task: LlmTask | ToolTask, text: str) -> Result:
    """Reply as a model that is done."""
    if isinstance(task, ToolTask):
        return Result(task_id=task.task_id, status="ok", result=text)
    usage = {"input_tokens": 10, "output_tokens": 2}
    return Result(
        task_id=task.task_id, status="ok", content=text, finish_reason="stop", usage=usage
    )


def echo(task: LlmTask | ToolTask) -> Result | None:
    """Play a model that repeats, asks, fails or stays silent, as it is told."""
    if isinstance(task, ToolTask):
        return says(task, "done")
    assert isinstance(task.messages, tuple)
    turn = [message for message in task.messages if isinstance(message, AssistantMessage)]
    told = str(said(task)[-1])
    if told == "be silent":
        return None
    if told == "fail":
        return Result(task_id=task.task_id, status="error", error="401 invalid api key")
    if told == "ask":
        return calls(task, "ask_human", question="Which one?")
    return says(task, f"you said {told}" if not turn else f"then you said {told}")


class Things(dict[str, Any]):
    """One of each thing of a tenant: the ids that requests name."""

    def request(self, operation: Operation) -> tuple[str, dict[str, Any] | None]:
        """Return the path that asks an operation about these things, and a body that is good."""
        noun = operation.path.removeprefix(PREFIX).split("/")[1]
        here = {"id": self.get("token" if operation.id == "receive_hook" else noun), "key": "talk"}
        here["node"] = self.get("nodes", "nobody")
        if operation.id == "reply_to_run":
            here["id"] = self["asking"]
        path = operation.path.removeprefix(PREFIX).format(**here)
        body = dict(BODIES.get(operation.id, {}))
        if "agent_id" in body:
            body["agent_id"] = self["agents"]
        if "run_id" in body:
            body["run_id"] = self["runs"]
        return path, body if operation.body is not None else None


BODIES: dict[str, dict[str, Any]] = {
    "create_agent": {"name": "another", "system_prompt": "You help."},
    "update_agent": {"purpose": "to help"},
    "send_message": {"content": "hi"},
    "reply_to_run": {"answer": "that one"},
    "resolve_call": {"call": "1.1.t0", "resolution": "tell_model"},
    "cancel_run": {"reason": "enough"},
    "update_policy": {
        "policy": {"version": 1, "name": "ours", "rule": [{"id": "all", "verdict": "allow"}]}
    },
    "create_standing_approval": {
        "run_id": 0,
        "call": "1.1.t0",
        "arguments": [{"path": "cents", "at_most": 5000}],
        "expires_minutes": 60,
    },
    "decide_approval": {"call": "1.1.t0", "decision": "approve"},
    "raise_budget": {"tokens": 1_000},
    "fork_run": {"step": 0, "message": "otherwise"},
    "update_session": {"title": "A talk"},
    "create_trigger": {"agent_id": 0, "name": "daily", "cron": "0 9 * * *", "message": "go"},
    "update_trigger": {"enabled": False},
    "create_gard": {"name": "box"},
    "update_gard": {"name": "crate"},
    "create_hook": {"agent_id": 0, "name": "push"},
    "update_hook": {"enabled": False},
    "receive_hook": {"text": "hello"},
    "create_endpoint": {"name": "ci", "url": "https://ci.example/hook"},
    "update_endpoint": {"events": ["run.completed"]},
    "create_key": {"scope": "read"},
    "record_first_run": {"source": "cli"},
}


async def furnished(h: House, tenant: str = "acme") -> Things:
    """Give a tenant one of each thing: runs that are done, that ask, and that go on."""
    ids = Things()
    h.worker(echo, tenant)
    agent = await h.make("/agents", BOT, tenant=tenant)
    ids["agents"] = agent["id"]
    ids["runs"] = await h.run(agent["id"], "hi", tenant=tenant, conversation_key="talk")
    ids["asking"] = await h.run(agent["id"], "ask", tenant=tenant)
    ids["sessions"] = (await h.get(f"/runs/{ids['runs']}", tenant=tenant))["conversation_id"]
    trigger = {**BODIES["create_trigger"], "agent_id": agent["id"], "name": "t"}
    ids["triggers"] = (await h.make("/triggers", trigger, tenant=tenant))["id"]
    ids["gards"] = (await h.make("/gards", {"name": "g"}, tenant=tenant))["id"]
    hook = await h.make("/hooks", {"agent_id": agent["id"], "name": "h"}, tenant=tenant)
    ids["hooks"], ids["token"] = hook["id"], hook["token"]
    endpoint = {**BODIES["create_endpoint"], "name": "e"}
    ids["endpoints"] = (await h.make("/endpoints", endpoint, tenant=tenant))["id"]
    tested = await h.make(f"/endpoints/{ids['endpoints']}/test", None, tenant=tenant)
    ids["deliveries"] = tested["id"]
    ids["standing_approvals"] = await approve_ahead(h, tenant)
    ids["nodes"] = h.service.node.owner
    ids["api_keys"] = (await h.make("/api_keys", {"scope": "read"}, tenant=tenant))["id"]
    return ids


async def approve_ahead(h: House, tenant: str = "acme") -> int:
    """Keep a standing approval of a tool that nobody has; return its id."""
    entry = entries.StandingApproval(
        agent=BOT["name"],
        tool="pay",
        declared="",
        policy="",
        arguments=[{"path": "cents", "at_most": 5000}],
        expires_at=h.clock.now_ms() + 60_000,
    )
    return (await TenantCatalog(h.catalog, tenant).create(entry)).id
