"""Replays one seed and prints everything that happened in it, in the order of virtual time."""

from __future__ import annotations

from typing import TextIO

from perdure.core.codec import decode_event
from perdure.core.events import type_of
from perdure.testing.simulation.oracles import LOG_EVENTS_MAX, judge
from perdure.testing.simulation.runner import as_simulated, live
from perdure.testing.simulation.store import perform_at_rest


def replay(seed: int, out: TextIO) -> int:
    """Live through a seed and tell of it; return 1 if a promise was broken."""
    with as_simulated():
        world = live(seed)
        with world.loop.inside():
            judge(world)
    plan = world.plan
    out.write(f"seed {seed}: {plan.machines} machines, rough for {plan.rough_us / 1e6:.1f} s\n")
    lines = [
        (action.at_us, f"planned   {action.what} {action.arguments}") for action in plan.actions
    ]
    lines += [
        (at_us, f"{life:9} {name} " + " ".join(f"{key}={value}" for key, value in fields))
        for at_us, life, name, fields in world.observer.told
    ]
    lines += [
        (one.at_us, f"{one.life:9} {one.what} {one.tool} {one.session} {one.call}#{one.attempt}")
        for one in world.ledger.entries
    ]
    lines += [
        (one.at_us, f"{one.life:9} client: {one.kind} {one.subject}: {one.status} {one.detail}")
        for one in world.ledger.operations
    ]
    out.writelines(
        f"{at_us / 1e6:10.3f}  {line}\n" for at_us, line in sorted(lines, key=lambda line: line[0])
    )
    for session in world.observer.inboxes:
        out.write(f"log of {session}\n")
        for record in perform_at_rest(world.loop, world.store.read(session, 0, LOG_EVENTS_MAX)):
            event = decode_event(record.body)
            out.write(f"{record.seq:5d} {type_of(event)} {record.body.decode()}\n")
    violations = world.observer.violations
    out.writelines(f"BROKEN {violation}\n" for violation in violations)
    out.write(
        f"seed {seed}: {'a promise was broken' if violations else 'every promise was kept'}\n"
    )
    world.close()
    return 1 if violations else 0
