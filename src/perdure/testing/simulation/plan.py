"""What a seed has in store for a world: what clients ask when, and what befalls which machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from perdure.ports import faults

AGENTS = ("plain", "chief", "hurried", "compact", "lazy", "curt")
SITES = tuple(site for site in faults.SITES if not site.startswith("store."))
HOUR_MS = 3_600_000
TAKEOVER_US = 11_000_000


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
    cursed = draw() < 0.03
    rough_us = int(4e6 + 9e6 * draw()) + (25_000_000 if cursed else 0)
    patience = max(0.0, 1.4 * draw() - 0.4)
    messages = _messages(draw, rough_us)
    actions = list(messages)
    for what, likely in (("cancel", 0.4), ("retry", 0.3)):
        if draw() < likely:
            actions.append(Action(_soon_after(draw, messages, rough_us), what, (draw(),)))
    if cursed:
        machines = 1
        actions.append(Action(messages[0].at_us + int(5e5 * draw()), "curse", (0, 4)))
    elif draw() < 0.9:
        actions += [
            _fault(draw, _soon_after(draw, messages, rough_us), machines)
            for _ in range(1 + int(3 * draw()))
        ]
    takeovers = [at_us for at_us, what, arguments in actions if what == "arm" and arguments[-1]]
    rough_us = max([rough_us, *(at_us + TAKEOVER_US for at_us in takeovers)])
    if draw() < 0.15:
        skew_ms = int((2 * draw() - 1) * HOUR_MS)
        actions.append(Action(0, "skew", (int(draw() * machines), skew_ms)))
    if draw() < 0.25:
        fork_us = _soon_after(draw, messages, rough_us)
        actions.append(Action(fork_us, "fork", (draw(), draw(), draw() < 0.5)))
    actions.sort(key=lambda action: action.at_us)
    return Plan(machines, rough_us, patience, tuple(actions))


def _messages(draw: Callable[[], float], rough_us: int) -> list[Action]:
    """Draw what is sent: up to five messages to up to two sessions, often close together."""
    sessions = [(AGENTS[int(draw() * len(AGENTS))], f"s{n}") for n in range(1 + int(2 * draw()))]
    found: list[Action] = []
    at_us = int(rough_us * 0.3 * draw())
    for number in range(1 + int(4.6 * draw() ** 1.5)):
        agent, key = sessions[int(draw() * len(sessions))]
        chance = draw()
        mode = "queue" if chance < 0.45 else "steer" if chance < 0.8 else "interrupt"
        name = f"k{number}" if draw() < 0.7 else None
        found.append(Action(at_us, "send", (agent, key, mode, number, name)))
        if name is not None and draw() < 0.3:
            again_us = at_us + (0 if draw() < 0.3 else int(2e6 * draw()))
            found.append(Action(again_us, "send", (agent, key, mode, number, name)))
        at_us += int(8e5 * draw()) if draw() < 0.6 else int(0.4 * rough_us * draw())
    return found


def _soon_after(draw: Callable[[], float], messages: list[Action], rough_us: int) -> int:
    """Draw a time: mostly one at which there is something to disturb."""
    if draw() < 0.25:
        return int(rough_us * draw())
    return messages[int(draw() * len(messages))].at_us + int(1.5e6 * draw() ** 2)


def _fault(draw: Callable[[], float], at_us: int, machines: int) -> Action:
    machine, chance = int(draw() * machines), draw()
    if chance < 0.2:
        return Action(at_us, "crash", (machine,))
    if chance < 0.48:
        site = SITES[int(draw() * len(SITES))]
        hits = 1 + int(4 * draw())
        pause_us = int(7e6 + 4e6 * draw()) if machines > 1 and draw() < 0.4 else 0
        if pause_us and draw() < 0.6:
            site, hits = "tool.begun", 1
        return Action(max(0, at_us - 300_000), "arm", (machine, site, hits, pause_us))
    if chance < 0.76:
        return Action(at_us, "pause", (machine, int(3e6 + 8e6 * draw())))
    if chance < 0.88:
        return Action(at_us, "drain", (machine,))
    skew_ms = int((2 * draw() - 1) * HOUR_MS) if draw() < 0.7 else int(2_000 * (draw() - 0.5))
    return Action(at_us if draw() < 0.5 else 0, "skew", (machine, skew_ms))
