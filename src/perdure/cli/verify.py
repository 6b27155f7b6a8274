"""`perdure verify`: is a log what it was when it was written?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from perdure.bootstrap import SQLITE_PREFIX, open_reader
from perdure.cli.common import command_body, json_option
from perdure.cli.output import Output, plain
from perdure.cli.source import PAGE_ROWS, TENANT, all_rows
from perdure.core.errors import BrokenChain
from perdure.core.export import verify_export, verify_log
from perdure.core.ids import SessionId
from perdure.ports.session_store import RunQuery

BROKEN = 8
SQLITE_MAGIC = b"SQLite format 3\x00"


@click.command(epilog="Example: perdure verify .perdure/perdure.db")
@click.argument("what", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@command_body
async def verify(what: Path, as_json: bool) -> int:
    """Check every hash and every transition of an export or of a whole store.

    Exits with 0 if all is whole, with 8 and the first bad position if not.
    """
    output = Output(as_json)
    with what.open("rb") as file:
        is_store = file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    if is_store:
        return await _verify_store(what, output)
    with what.open("rb") as file:
        try:
            found = verify_export(file)
        except BrokenChain as error:
            _broken(output, str(what), error)
            return BROKEN
    _whole(output, str(found.session), found.events, found.head)
    return 0


async def _verify_store(path: Path, output: Output) -> int:
    reader = await open_reader(SQLITE_PREFIX + str(path))
    broken = 0
    try:
        rows = await all_rows(reader, RunQuery(tenant=TENANT))
        for session in dict.fromkeys(row.session for row in reversed(rows)):
            try:
                await _verify_session(reader, session, output)
            except BrokenChain as error:
                broken += 1
                _broken(output, str(session), error)
    finally:
        await reader.close()
    return BROKEN if broken else 0


async def _verify_session(reader: Any, session: SessionId, output: Output) -> None:
    loaded = await reader.load(session)
    records: list[Any] = []
    while page := await reader.read(session, len(records), PAGE_ROWS):
        records.extend(page)
    found = verify_log(session, records)
    behind = found.events != loaded.version or bytes.fromhex(found.head) != loaded.head
    if behind and (loaded.version or found.events):
        raise BrokenChain(
            found.events + 1,
            f"the log ends at {found.events}, but the session is at {loaded.version}",
        )
    _whole(output, str(session), found.events, found.head)


def _whole(output: Output, name: str, events: int, head: str) -> None:
    fields = {"log": name, "ok": True, "events": events, "head": head}
    output.record(fields, f"whole   {plain(name)}: {events} events, head {head[:16]}…")


def _broken(output: Output, name: str, error: BrokenChain) -> None:
    fields = {"log": name, "ok": False, "first_bad": error.seq, "error": str(error)}
    output.record(fields, f"BROKEN  {plain(name)} at event {error.seq}: {plain(error)}")
