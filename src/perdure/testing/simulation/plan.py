"""What a seed has in store for a world: what clients ask when, and what befalls which machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from perdure.ports import faults

AGENTS = ("plain", "plain", "hurried", "compact", "lazy", "curt")
SITES = tuple(site for site in faults.SITES if not site.startswith("store."))
HOUR_MS = 3_600_000


class Action(NamedTuple):
    """Something that the world does at a time, in microseconds."""

    at_us: int
    what: str
    arguments: tuple[Any, ...] = ()


class Plan(NamedTuple):
    """A world: how many machines it has, until when it is rough, and what happens in it."""

    machines: int
    rough_us: int
    patience: float
    actions: tuple[Action, ...]


def plan(draw: Callable[[], float]) -> Plan:
    """Draw a world."""
    chance = draw()
    machines = 1 if chance < 0.3 else 2 if chance < 0.85 else 3
    rough_us = int(3e6 + 9e6 * draw())
    patience = draw()
    actions: list[Action] = []

    def when(part: float = 1.0) -> int:
        return int(rough_us * part * draw())

    sessions = [(AGENTS[int(draw() * len(AGENTS))], f"s{n}") for n in range(1 + int(2 * draw()))]
    for number in range(1 + int(3.4 * draw())):
        agent, key = sessions[int(draw() * len(sessions))]
        chance = draw()
        mode = "queue" if chance < 0.5 else "steer" if chance < 0.8 else "interrupt"
        at_us = when(0.8)
        name = f"k{number}" if draw() < 0.7 else None
        actions.append(Action(at_us, "send", (agent, key, mode, number, name)))
        if name is not None and draw() < 0.3:
            again = at_us if draw() < 0.3 else at_us + when(0.3)
            actions.append(Action(again, "send", (agent, key, mode, number, name)))
    for what, likely in (("cancel", 0.35), ("retry", 0.25)):
        if draw() < likely:
            actions.append(Action(when(), what, (draw(),)))
    if draw() < 0.9:
        for _ in range(1 + int(3 * draw())):
            actions.append(_fault(draw, when(), machines))
    actions.sort(key=lambda action: action.at_us)
    return Plan(machines, rough_us, patience, tuple(actions))


def _fault(draw: Callable[[], float], at_us: int, machines: int) -> Action:
    machine, chance = int(draw() * machines), draw()
    if chance < 0.25:
        return Action(at_us, "crash", (machine,))
    if chance < 0.55:
        site = SITES[int(draw() * len(SITES))]
        return Action(int(at_us * 0.6), "arm", (machine, site, 1 + int(4 * draw())))
    if chance < 0.75:
        return Action(at_us, "pause", (machine, int(9e6 * draw())))
    if chance < 0.87:
        return Action(at_us, "drain", (machine,))
    skew_ms = int((2 * draw() - 1) * HOUR_MS) if draw() < 0.7 else int(2_000 * (draw() - 0.5))
    return Action(at_us if draw() < 0.5 else 0, "skew", (machine, skew_ms))
