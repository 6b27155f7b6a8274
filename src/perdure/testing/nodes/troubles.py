"""What can come between nodes and their store, each as something that is done to a scene.

Every trouble ends by itself, and leaves processes, networks and clocks as it found them.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from perdure.testing.nodes.scene import Scene

Play = Callable[[Scene], Awaitable[None]]
STALL_LEASES = 4.0
SHARED = ("postgres", "redis", "nats")
THREE = (*SHARED, "three nats")
EVERY = ("sqlite", *THREE)


class Trouble(NamedTuple):
    """A way to hurt: what it is in a sentence, which stores can be hurt so, and how."""

    name: str
    what: str
    play: Play
    stores: tuple[str, ...] = SHARED
    forgets: bool = False
    """Whether the store loses by this what it had acknowledged, as its durability says."""
    followed: bool = False
    """Whether the store's server has one that follows it."""
    false_clocks: bool = False
    speeds: tuple[float | None, ...] = ()
    bus: Mapping[str, float] = {}
    """How the messages between nodes are spoiled; see `BadBus`."""


async def nothing(scene: Scene) -> None:
    """Do nothing: the control."""


async def kill(scene: Scene) -> None:
    """SIGKILL nodes at random moments, again while they recover."""
    for _ in range(8):
        await scene.pause(0.05, 0.5)
        await scene.kill(scene.any_member())


async def freeze(scene: Scene) -> None:
    """SIGSTOP nodes for up to three leases, and let them go on."""
    for _ in range(4):
        await scene.pause(0.05, 0.4)
        member = scene.any_member()
        member.send(signal.SIGSTOP)
        await scene.pause(0.3, 3)
        member.send(signal.SIGCONT)


async def stall(scene: Scene) -> None:
    """Let the event loop of a node stand still for longer than its lease."""
    for _ in range(2):
        await scene.pause(0.3, 0.6)
        await scene.stall(STALL_LEASES)


async def clocks(scene: Scene) -> None:
    """Put the clock of a node two hours on, then three days back; another runs at half speed."""
    for rule in ("+2h", "-3d", "+2h", "+0"):
        await scene.pause(0.8, 1.2)
        scene.clocks["n0"].write_text(f"{rule}\n")
    await scene.pause(1, 1.2)


async def _parted(scene: Scene, times: int, part: Callable[[Any], None]) -> None:
    for _ in range(times):
        await scene.pause(0.1, 0.4)
        proxies = scene.proxies[scene.any_name()]
        for proxy in proxies:
            part(proxy)
        await scene.pause(0.3, 2.2)
        for proxy in proxies:
            proxy.heal()


async def cut(scene: Scene) -> None:
    """Reset every connection of a node to its store, for up to two leases."""
    await _parted(scene, 4, lambda proxy: proxy.cut())


async def half_open(scene: Scene) -> None:
    """Let nothing through between a node and its store, and deliver it all afterwards."""
    await _parted(scene, 3, lambda proxy: proxy.hold())


async def one_way(scene: Scene) -> None:
    """Let requests through to the store and no answer back."""
    await _parted(scene, 3, lambda proxy: proxy.answers.hold())


async def lost_answers(scene: Scene) -> None:
    """Let requests through, and reset the connection in place of their answers."""
    for _ in range(10):
        await scene.pause(0.05, 0.2)
        for proxy in scene.proxies[scene.any_name()]:
            proxy.answers.hold()
            await asyncio.sleep(0.02)
            proxy.sever()
            proxy.heal()


async def slow(scene: Scene) -> None:
    """Delay everything between a node and its store, and let answers drip."""
    proxies = scene.proxies[scene.any_name()]
    for proxy in proxies:
        proxy.requests.delay_ms = 40
        proxy.answers.bytes_per_second = 2_000
    await scene.pause(2, 3)
    for proxy in proxies:
        proxy.heal()


async def store_killed(scene: Scene) -> None:
    """Kill the store's server in the middle of commits, and start it again."""
    for _ in range(2):
        await scene.pause(0.3, 0.8)
        server = scene.chance.choice(scene.backend.servers)
        await scene.server(server.kill)
        await scene.pause(0.1, 1.2)
        await scene.server(server.start_again)


async def store_frozen(scene: Scene) -> None:
    """Stop the store's server where it is for longer than every lease."""
    for _ in range(2):
        await scene.pause(0.3, 0.6)
        server = scene.chance.choice(scene.backend.servers)
        await scene.server(server.freeze)
        await scene.pause(0.4, 1.8)
        await scene.server(server.thaw)


async def deaf_bus(scene: Scene) -> None:
    """Kill nodes whose bus loses every message."""
    await kill(scene)


async def wild_bus(scene: Scene) -> None:
    """Kill nodes whose bus loses, repeats and reorders messages."""
    await kill(scene)


async def all_cut(scene: Scene) -> None:
    """Cut all nodes from every server at once, for two leases."""
    for _ in range(2):
        await scene.pause(0.2, 0.6)
        networks = [one for networks in scene.proxies.values() for one in networks]
        for network in networks:
            network.cut()
        await scene.pause(1.5, 2)
        for network in networks:
            network.heal()


async def emptied(scene: Scene) -> None:
    """Kill the store's server, and start it again without what it had."""
    await scene.pause(0.5, 0.8)
    [server] = scene.backend.servers
    await scene.server(server.kill)
    await scene.server(lambda: server.start_again(empty=True))


async def stale(scene: Scene) -> None:
    """Start the store's server again from a copy of its disk that lacks the last second."""
    [server] = scene.backend.servers
    await scene.pause(0.8, 1)
    disk = await asyncio.to_thread(server.disk)
    await scene.pause(0.8, 1.2)
    await scene.server(server.kill)
    scene.set_back()
    await scene.server(lambda: server.start_again(disk=disk))


async def failed_over(scene: Scene) -> None:
    """Kill the server in the middle of commits, and promote its synchronous standby."""
    await scene.pause(0.3, 0.8)
    await scene.server(scene.backend.fail_over)
    for networks in scene.proxies.values():
        for network, address in zip(networks, scene.backend.addresses, strict=True):
            network.lead_to(*address)


ALL: Mapping[str, Trouble] = {
    name: Trouble(name, (play.__doc__ or "").strip(), play, **more)
    for name, play, more in (
        ("nothing", nothing, {"stores": EVERY}),
        ("kill", kill, {"stores": EVERY}),
        ("freeze", freeze, {"stores": EVERY}),
        ("stall", stall, {}),
        ("clocks", clocks, {"false_clocks": True, "speeds": (None, 0.5)}),
        ("cut", cut, {}),
        ("half open", half_open, {}),
        ("one way", one_way, {}),
        ("lost answers", lost_answers, {}),
        ("slow", slow, {}),
        ("all cut", all_cut, {"stores": THREE}),
        ("store killed", store_killed, {"stores": THREE}),
        ("store frozen", store_frozen, {"stores": THREE}),
        ("deaf bus", deaf_bus, {"bus": {"lost": 1.0}}),
        ("wild bus", wild_bus, {"bus": {"lost": 0.2, "twice": 0.5, "late_ms": 200}}),
        ("failed over", failed_over, {"stores": ("postgres",), "followed": True}),
        ("emptied", emptied, {"stores": ("redis",), "forgets": True}),
        ("stale copy", stale, {"stores": ("redis",), "forgets": True}),
    )
}
