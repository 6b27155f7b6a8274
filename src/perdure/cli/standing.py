"""`perdure approvals always`, `standing` and `revoke`: what is approved ahead, on a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import msgspec

from perdure.cli.access import access, server_options
from perdure.cli.approvals import is_meant, is_seen, pending
from perdure.cli.common import command_body, json_option
from perdure.cli.output import Output
from perdure.cli.served import served
from perdure.cli.verbs import Verb, command
from perdure.core.errors import InvalidInput

EXAMPLE = """perdure approvals always 12 --where '{"path": "cents", "at_most": 5000}' --days 7"""
_DAY_MINUTES = 24 * 60


@click.command(epilog=f"Example: {EXAMPLE}")
@click.argument("run_id")
@click.argument("call", required=False)
@click.option("--where", multiple=True, required=True, help="JSON: a predicate; repeatable.")
@click.option("--days", type=click.IntRange(1), help="For so many days.")
@click.option("--minutes", type=click.IntRange(1), help="For so many minutes.")
@click.option("--uses", type=click.IntRange(1), help="In each session at most so often.")
@click.option("--digest", help="Of the arguments that you looked at; others are refused.")
@click.option("--yes", is_flag=True, help="Approve what the arguments are now, unseen.")
@click.option("--reason", default="", help="Why; shown where it is listed.")
@click.option("--no-follow", is_flag=True, help="Do not wait for the end of the run.")
@server_options
@json_option
@command_body
async def always(
    run_id: str,
    call: str | None,
    where: Sequence[str],
    days: int | None,
    minutes: int | None,
    uses: int | None,
    digest: str | None,
    yes: bool,
    reason: str,
    no_follow: bool,
    url: str | None,
    key: str | None,
    as_json: bool,
) -> int:
    """Approve a call, and ahead those of its agent and tool that are like it.

    What is like it, --where says, in the words of a policy's rules. It stands until its time is
    over, it is revoked, or the policy or the tool changes. What the policy denies stays denied.
    """
    output, server = Output(as_json), access(url, key)
    expires_minutes = (days or 0) * _DAY_MINUTES + (minutes or 0)
    if not expires_minutes:
        raise InvalidInput("say for how long: --days or --minutes")
    like = [_predicate(text) for text in where]
    wait = await pending(run_id, call, "", server, output)
    if not is_seen(digest, yes) and not await is_meant(wait, output):
        output.say("Nothing was decided.")
        return 1
    seen = digest or wait["digest"]
    async with served(server, output) as there:
        run = there.run(run_id)
        made = await run.approve_ahead(
            wait["call"],
            like,
            expires_minutes=expires_minutes,
            uses_per_session=uses,
            digest=seen,
            reason=reason,
        )
        told = f"Standing approval {made.id} is in force until {made.expires_at[:16]}Z."
        output.record(msgspec.to_builtins(made), told)

        async def approve() -> None:
            await run.decide(wait["call"], "approve", digest=seen)

        return await there.tell(run, approve, not no_follow)


def _predicate(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        wanted = """'{"path": "cents", "at_most": 5000}'"""
        raise InvalidInput(f"--where is a JSON object, as {wanted}: {error}") from None


COMMANDS = (
    always,
    command(
        "approvals",
        Verb(
            "standing",
            "list_standing_approvals",
            columns=("id", "standing", "agent", "tool", "arguments", "expires_at", "by"),
        ),
    ),
    command(
        "approvals",
        Verb(
            "revoke",
            "revoke_standing_approval",
            "7",
            done="standing approval {id} is revoked",
        ),
    ),
)
