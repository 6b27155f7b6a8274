"""`perdure sessions`: of a store, with what is set aside and its release; and of a server."""

from __future__ import annotations

import click

from perdure.bootstrap import SystemClock, open_store
from perdure.cli.access import Access, place_options
from perdure.cli.common import command_body, json_option
from perdure.cli.output import Output, plain
from perdure.cli.source import TENANT, all_rows, reading
from perdure.cli.verbs import Verb, command, pages, show_list
from perdure.core.errors import InvalidInput, NotFound, Refused
from perdure.core.ids import SessionId
from perdure.ports.session_store import RunQuery

COLUMNS = ("id", "agent", "key", "status", "message_count", "title", "updated_at")
VERBS = (
    Verb("show", "get_session", "12", help="Show a session of a server, with its messages"),
    Verb("name", "update_session", "12 --title 'Order 42'"),
    Verb("archive", "archive_session", "12", done="session {id} is archived"),
    Verb("restore", "restore_session", "12", done="session {id} is back"),
)


@click.group()
def sessions() -> None:
    """List sessions, and deal with them.

    Those of a store are released from quarantine, those of a server shown, named and archived.
    """


@sessions.command("list", epilog="Example: perdure sessions list --quarantined")
@click.option("--quarantined", is_flag=True, help="Only those that are set aside, of a store.")
@click.option("--archived", is_flag=True, help="Only those that are archived, of a server.")
@json_option
@command_body
@place_options
async def list_sessions(
    quarantined: bool, archived: bool, store: str, server: Access | None, as_json: bool
) -> None:
    """List sessions, the last used first."""
    output = Output(as_json)
    if quarantined if server is not None else archived:
        raise InvalidInput("--quarantined is for a store, --archived for a server")
    if server is not None:
        async with server.client() as client:
            found = pages(client, "list_sessions", None, archived=archived)
            await show_list(output, [one async for one in found], COLUMNS, client)
        return
    async with reading(store) as reader:
        rows = await all_rows(reader, RunQuery(tenant=TENANT))
        for session in dict.fromkeys(row.session for row in rows):
            loaded = await reader.load(session)
            if loaded is None or (quarantined and loaded.quarantine is None):
                continue
            fields = {
                "agent": session.agent,
                "session": session.key,
                "events": loaded.version,
                "waiting_commands": len(loaded.inbox),
                "quarantine": loaded.quarantine,
            }
            aside = f"  IN QUARANTINE: {plain(loaded.quarantine)}" if loaded.quarantine else ""
            name = f"{plain(session.agent)} {plain(session.key)}"
            output.record(fields, f"{name}  {loaded.version} events{aside}")


@sessions.command(epilog="Example: perdure sessions release support slack:U01")
@click.argument("agent")
@click.argument("session", required=False)
@json_option
@command_body
@place_options
async def release(
    agent: str, session: str | None, store: str, server: Access | None, as_json: bool
) -> None:
    """Lift the quarantine of a session.

    The next `perdure resume` goes on with it. On a server, name the session's number instead of
    AGENT and SESSION; it goes on at once.
    """
    if server is not None:
        if session is not None or not agent.isdecimal():
            raise InvalidInput("on a server a session is named by its number alone")
        async with server.client() as client:
            await client.call("release_session", id=int(agent))
        Output(as_json).record({"session": int(agent), "released": True}, f"{agent} is released")
        return
    if session is None:
        raise InvalidInput("name the agent and the session; with --url a session's number")
    async with reading(store) as reader:
        found = SessionId(TENANT, agent, session)
        loaded = await reader.load(found)
        if loaded is None:
            raise NotFound(f"there is no session {session!r} of agent {agent!r}")
        if loaded.quarantine is None:
            raise Refused(f"session {session!r} is not in quarantine", "not_quarantined")
    opened = await open_store(store, SystemClock())
    try:
        await opened.release(found, None)
    finally:
        await opened.close()
    released = {"agent": agent, "session": session, "released": True}
    Output(as_json).record(released, f"{plain(agent)} {plain(session)} is released")


for verb in VERBS:
    sessions.add_command(command("sessions", verb))
