"""Members: the workers that are connected, and which of them fit a task."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, Protocol

from perdure.ports.workers import ModelTask, Task
from perdure.wire.message_cache import MessageCache
from perdure.wire.registration import Registration
from perdure.wire.server import ServerSide
from perdure.wire.tasks import LlmTask, ToolTask

TASKS_PER_WORKER_MAX = 256
"""How many tasks a worker has at once if it does not say otherwise."""

NEEDS_INDEXED_MAX = 10_000
LOOKED_AT = 32


class Connection(Protocol):
    """The socket of a worker.

    Neither method blocks, raises or calls back, whatever state the socket is in.
    """

    def send(self, frame: str) -> None:
        """Send a text message, after those before it."""
        ...

    def close(self, code: int) -> None:
        """Close with a WebSocket close code, after what was sent."""
        ...


class Need(NamedTuple):
    """What a worker has to have for a task. Without `tool`, the capability `llm`.

    With `native` it has to serve the agent by name: its model may be code, and its tools are its
    own, which another worker may have by chance. Of a tool it has to have the same `version`.
    """

    tenant: str
    gard: str | None
    agent: str
    tool: str | None
    probe: bool
    native: bool
    version: str = ""

    def __str__(self) -> str:
        what = "llm" if self.tool is None else f"the tool {self.tool!r}"
        what += f" of version {self.version!r}" if self.version else ""
        where = "" if self.gard is None else f" in gard {self.gard}"
        return f"a worker with {what} for agent {self.agent!r}{where}"


def need_of(task: Task, gard: str | None, native: bool) -> Need:
    """Return what a worker has to have for `task`."""
    if isinstance(task, ModelTask):
        return Need(task.session.tenant, gard, task.agent, None, False, native)
    tenant, version = task.session.tenant, task.version
    return Need(tenant, gard, task.agent, task.tool, task.probing, native, version)


class Member:
    """A connected worker, as long as it is connected.

    `key` is whatever its server knows it by: the API key that it came with.
    """

    is_node = False
    """Whether it stands for another node and its workers."""

    def __init__(
        self,
        tenant: str,
        registration: Registration,
        wire: ServerSide,
        connection: Connection,
        since_ms: int,
        key: str | None = None,
    ) -> None:
        self.tenant = tenant
        self.registration = registration
        self.wire = wire
        self.connection = connection
        self.since_ms = since_ms
        self.key = key
        self.features = registration.features
        self.native = "native" in registration.features
        self.draining = False
        self.gone = False
        self._gathering = False
        self.tasks: dict[str, Any] = {}
        self.cache = (
            MessageCache.of(registration.features)
            if "message_cache" in registration.features
            else None
        )
        self._tools = frozenset(tool.name for tool in registration.tools)
        self._agents = {agent.name: frozenset(agent.tools) for agent in registration.agents}
        self._versions = {
            (agent.name, tool): version
            for agent in registration.agents
            for tool, version in agent.versions.items()
        }
        self._counts_credit = "credit" in registration.features
        self._credit = 0
        self._tasks_max = registration.concurrency or TASKS_PER_WORKER_MAX

    @property
    def id(self) -> str:
        """The id that the worker gave itself."""
        return self.registration.worker_id

    def fits(self, need: Need) -> bool:
        """Say whether the worker has what a task needs, whatever it is doing now."""
        if need.tenant != self.tenant or need.gard != self.registration.gard:
            return False
        tools = self._agents.get(need.agent) if self.native else self._tools
        if tools is None or ((need.probe or need.native) and not self.native):
            return False
        if need.tool is None:
            return "llm" in self.registration.capabilities
        return need.tool in tools and self.version_of(need) == need.version

    def version_of(self, need: Need) -> str:
        """Return the version that this worker has of a tool; an empty text if it has none."""
        return self._versions.get((need.agent, need.tool or ""), "")

    def runs(self, worker: str) -> bool:
        """Say whether this is a worker with an id, or knows who is."""
        return self.id == worker

    def free(self) -> int:
        """Return how many tasks more the worker takes now."""
        if self.draining or self.gone:
            return 0
        room = self._tasks_max - len(self.tasks)
        return min(room, self._credit) if self._counts_credit else room

    def grant(self, tasks: int) -> None:
        """Take so many tasks more."""
        self._credit += max(0, tasks)

    def take(self, id: str, held: Any) -> None:
        """Have a task."""
        self.tasks[id] = held
        self._credit -= self._counts_credit

    def keep(self, id: str, held: Any) -> None:
        """Have a task that the worker was at before it joined: its credit is without it."""
        self.tasks[id] = held

    def tell(self, payload: Any) -> bool:
        """Tell the worker something; False if it would not understand, or is gone.

        Tasks that come up in one turn of the loop go together, if it can take them so. Raises
        `TooLarge` if it would not take a frame of that size.
        """
        if isinstance(payload, LlmTask | ToolTask) and self.wire.gather(payload):
            if not self._gathering:
                self._gathering = True
                asyncio.get_running_loop().call_soon(self._send_gathered)
            return True
        frames = self.wire.tell(payload)
        for frame in frames:
            self.connection.send(frame)
        return bool(frames)

    def _send_gathered(self) -> None:
        self._gathering = False
        for frame in self.wire.gathered():
            self.connection.send(frame)


class Roster:
    """All members, by tenant and worker id, and by what they are needed for."""

    def __init__(self) -> None:
        self._members: dict[tuple[str, str], Member] = {}
        self._fitting: dict[Need, list[Member]] = {}
        self._turn = 0

    def add(self, member: Member) -> Member | None:
        """Add a member; returns the one whose place it takes."""
        replaced = self._members.get((member.tenant, member.id))
        self._members[member.tenant, member.id] = member
        self.changed()
        return replaced

    def remove(self, member: Member) -> None:
        """Remove a member; harmless if another has its place by now."""
        if self._members.get((member.tenant, member.id)) is member:
            del self._members[member.tenant, member.id]
            self.changed()

    def changed(self) -> None:
        """Look anew who fits what."""
        self._fitting.clear()

    def best(self, need: Need) -> Member | None:
        """Return a fitting member with room, if any has room: the one that has the most.

        Of very many, only some are looked at, in turn, unless none of them has room.
        """
        fitting = self._fitting.get(need)
        if fitting is None:
            fitting = [m for m in self._members.values() if m.fits(need) and not m.draining]
            if len(self._fitting) >= NEEDS_INDEXED_MAX:
                self._fitting.clear()
            self._fitting[need] = fitting
        if len(fitting) > LOOKED_AT:
            self._turn = (self._turn + LOOKED_AT) % len(fitting)
            some = max(fitting[self._turn : self._turn + LOOKED_AT], key=Member.free)
            if some.free() > 0:
                return some
        best = max(fitting, key=Member.free, default=None)
        return best if best is not None and best.free() > 0 else None

    def room(self, need: Need) -> int:
        """Return for how many tasks with a need the members have room."""
        return sum(m.free() for m in self._members.values() if m.fits(need))

    def wanted(self, need: Need) -> str:
        """Say who would fit a need, and which members have its tool in another version."""
        others = [
            f"; worker {member.id!r} has version {member.version_of(need)!r}"
            for member in self._members.values()
            if member.fits(need._replace(version=member.version_of(need))) and not member.fits(need)
        ]
        return str(need) + "".join(others)

    def fitting(self, need: Need) -> int:
        """Return how many members fit a need, busy or draining ones too."""
        return sum(member.fits(need) for member in self._members.values())

    def all(self, tenant: str | None = None) -> list[Member]:
        """Return the members of a tenant, or all, in the order in which they came."""
        return [m for m in self._members.values() if tenant in (None, m.tenant)]
