"""The real clock: identities."""

from __future__ import annotations

import os
import uuid

from perdure.adapters.clock import IDS_PER_READ, SystemClock


def test_identities_are_version_7_and_grow() -> None:
    """Across more than one reading of chance, and within one millisecond."""
    clock = SystemClock()
    ids = [clock.fresh_id() for _ in range(3 * IDS_PER_READ)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(one).version for one in ids} == {7}
    assert {uuid.UUID(one).variant for one in ids} == {uuid.RFC_4122}


def test_a_forked_child_has_identities_of_its_own() -> None:
    """What the parent has read of chance is not given twice."""
    clock = SystemClock()
    clock.fresh_id()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, clock.fresh_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 36).decode()[-16:] != clock.fresh_id()[-16:]
    os.close(reading)
    os.close(writing)
