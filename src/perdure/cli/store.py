"""`perdure store`: what a store is worth, a copy of it, and saying that it is not what it was."""

from __future__ import annotations

from pathlib import Path

import click

from perdure.bootstrap import SystemClock, back_up, open_store, sqlite_path
from perdure.cli.access import FOLDER
from perdure.cli.common import command_body, json_option, store_option
from perdure.cli.output import Output, plain
from perdure.core.errors import NotFound


@click.group()
def store() -> None:
    """Look at a store, copy it, and mark it after it was restored."""


@store.command(epilog="Example: perdure store show --store sqlite:///.perdure/server.db")
@store_option
@json_option
@command_body
async def show(store: str, as_json: bool) -> None:
    """Show what an acknowledgement of a store is worth, which store it is, and what was measured.

    A store that one process has for itself, as SQLite's, cannot be measured while that runs: its
    node says the same at /ready.
    """
    opened = await open_store(_existing(store), SystemClock())
    try:
        measured: dict[str, object] = getattr(opened, "facts", dict)()
        found = {"durability": opened.durability, "identity": opened.identity, **measured}
    finally:
        await opened.close()
    known = {name: value for name, value in found.items() if value is not None}
    lines = (f"{name:<20} {plain(str(value))}" for name, value in known.items())
    Output(as_json).record(known, "\n".join(lines))


@store.command(epilog="Example: perdure store distrust --store sqlite:///.perdure/server.db")
@store_option
@json_option
@command_body
async def distrust(store: str, as_json: bool) -> None:
    """Say that a store was restored, or lost what it had acknowledged.

    Every session in it is suspect then, and what may have been done and forgotten is not done again
    silently: a run that was in progress fails with `suspect`, a message that waited is withdrawn,
    and a person who has looked says what is to be done again. Do it before a node opens the store.
    `perdure store backup` has done it to its copies already.
    """
    opened = await open_store(_existing(store), SystemClock())
    try:
        await opened.distrust()
        identity = opened.identity
    finally:
        await opened.close()
    Output(as_json).record(
        {"identity": identity, "distrusted": True}, "every session of the store is suspect now"
    )


@store.command(epilog="Example: perdure store backup backups/monday")
@click.argument("to", type=click.Path(path_type=Path))
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=FOLDER,
    envvar="PERDURE_FOLDER",
    show_default=True,
    help="Where the SQLite files are.",
)
@json_option
@command_body
async def backup(to: Path, folder: Path, as_json: bool) -> None:
    """Copy the SQLite files of a folder to a new folder TO, while a server uses them or not.

    Each copy is what one moment saw, is checked, and is on the disk when this ends. Sessions are
    copied before the catalog, and the copies are distrusted: whoever opens them knows that they are
    not the newest. The pepper is not copied: keep it where your secrets are.
    """
    output = Output(as_json)
    for path in await back_up(folder, to, SystemClock()):
        size = path.stat().st_size
        output.record({"file": str(path), "bytes": size}, f"{path}  {size:,} bytes")


def _existing(url: str) -> str:
    """Return a URL whose store is there: looking at one must not make it. Raises `NotFound`."""
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise NotFound(f"there is no store at {url}")
    return url
