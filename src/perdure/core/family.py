"""Runs that launch runs: who is whose parent, and the letters by which their sessions keep in step.

Each session has a log of its own, and no commit spans two of them. What a session owes another one
is a letter: it enters the state with the event that causes it, and leaves it with the event that
says it was delivered. It is delivered by being accepted into the other one's inbox under an id that
follows from the letter, so that a letter that is sent twice is received once.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Parent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What launched a run: the call `call` of the run `run`, in the last session of `lineage`.

    `lineage` are the (agent, key) of all sessions that wait for this run, from that of `root`, the
    run that nobody launched, down to its parent's.
    """

    run: str
    call: str
    root: str
    lineage: tuple[tuple[str, str], ...]

    @property
    def depth(self) -> int:
        """How many runs are above this one."""
        return len(self.lineage)


class Child(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The run that a call has launched: its id, and the agent and key of its session.

    `name` is what its agent calls itself. It was launched again at the times in `restarts`.
    `seq` is the position of the event that says what it was asked.
    """

    run: str
    agent: str
    key: str
    name: str
    seq: int = 0
    restarts: tuple[int, ...] = ()


class Letter(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a session owes the session (`agent`, `key`): to start a run, cancel it, or tell its end.

    `run` is the run that it starts or cancels, or the parent whose `call` it answers. The event at
    `seq` says the rest.
    """

    id: str
    what: Literal["start", "cancel", "end"]
    agent: str
    key: str
    run: str
    seq: int
    call: str = ""


def start(child: Child) -> Letter:
    """Return the letter that starts a child."""
    return Letter(f"start:{child.run}", "start", child.agent, child.key, child.run, child.seq)


def cancel(child: Child, seq: int) -> Letter:
    """Return the letter that cancels a child that nobody waits for any more."""
    return Letter(f"cancel:{child.run}", "cancel", child.agent, child.key, child.run, seq)


def end(parent: Parent, run: str, seq: int) -> Letter:
    """Return the letter that tells a parent how its child ended."""
    agent, key = parent.lineage[-1]
    return Letter(f"end:{run}", "end", agent, key, parent.run, seq, parent.call)
