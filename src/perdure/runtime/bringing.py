"""Bringing: a report is put into the inbox of a session that is not run here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from perdure.core.codec import GENERATION
from perdure.core.commands import (
    AnyCommand,
    BringReport,
    Report,
    ReportModelError,
    ReportProbe,
    ReportToolBegin,
    ReportToolLost,
    ReportToolResult,
    encode_command,
    report_id,
)
from perdure.core.errors import Broken, Unavailable
from perdure.core.ids import SessionId
from perdure.ports.clock import Clock
from perdure.ports.session_store import InboxEntry, SessionStore
from perdure.ports.telemetry import Telemetry

AGAIN_MS = 500
"""After how long a store is asked again that did not answer."""
NOT_ANSWERED = frozenset({"timeout", "too_large"})
"""The kinds of outcomes that were made up for a tool: it said nothing, or was not asked."""


def is_loss(report: Report) -> bool:
    """Say whether a report only tells that nothing came of a call here.

    It is not brought to a session that another node may run: that one executes the call itself, or
    waits for its worker, and knows better what comes of it.
    """
    match report:
        case ReportModelError() | ReportToolLost() | ReportProbe(verdict="undecided"):
            return True
        case ReportToolResult():
            return report.kind in NOT_ANSWERED
        case _:
            return False


def outcomes(commands: Iterable[AnyCommand]) -> list[Report]:
    """Return the reports of what workers did; who only asked to begin will ask again."""
    return [one for one in commands if isinstance(one, Report) and type(one) is not ReportToolBegin]


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
