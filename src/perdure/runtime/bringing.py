"""Bringing: a report is put into the inbox of a session that is not run here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from perdure.core.codec import GENERATION
from perdure.core.commands import BringReport, Report, encode_command, report_id
from perdure.core.errors import Broken, Unavailable
from perdure.core.ids import SessionId
from perdure.ports.clock import Clock
from perdure.ports.session_store import InboxEntry, SessionStore
from perdure.ports.telemetry import Telemetry

AGAIN_MS = 500
"""After how long a store is asked again that did not answer."""


async def bring(
    store: SessionStore,
    clock: Clock,
    telemetry: Telemetry,
    session: SessionId,
    report: Report,
    goes_on: Callable[[], bool] = lambda: True,
) -> bool:
    """Put a report into a session's inbox: whoever runs it decides it. False if it is given up.

    A store that does not answer is asked again, as long as `goes_on` says so. Raises what else
    the store says of the report.
    """
    command = BringReport(id=report_id(report), report=report)
    entry = InboxEntry(command.id, session, encode_command(command), clock.now_ms())
    while True:
        try:
            await store.accept(entry, None, GENERATION)
        except Unavailable as error:
            telemetry.emit("store.unavailable", session=str(session), error=str(error))
            if isinstance(error, Broken) or not goes_on():
                return False
            await pause(clock, AGAIN_MS)
        else:
            return True


async def pause(clock: Clock, pause_ms: int) -> None:
    """Let time pass."""
    passed = asyncio.Event()
    clock.call_later(pause_ms, passed.set)
    await passed.wait()
