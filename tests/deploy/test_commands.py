"""Every command line under deploy/ is one that `perdure` takes, with variables that it reads."""

from __future__ import annotations

import click
import pytest

from perdure.bootstrap import Agent
from perdure.cli.loading import load_agent
from tests.deploy.files import READ, ROOT, Command, every_command

COMMANDS = every_command()
FOLDERS = {one.where.partition("/")[0] for one in COMMANDS}
MOUNTED = {"/agents": (ROOT / "examples", ROOT / "deploy" / "three-nodes")}
READ_BY_OTHERS = {
    "POD_NAME",
    "POD_IP",
    "PGPASSWORD",
    "PYTHONUNBUFFERED",
    "REFUND_PAYMENTS",
    "PARCELS_LEDGER",
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.where)
def test_a_command_line_is_one_of_ours(command: Command) -> None:
    context = command.parsed()
    assert context.command.name in ("server", "worker")
    known = {*READ, *READ_BY_OTHERS}
    assert {name for name in command.environment if name not in known} == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve",),
        ("server", "--bind", "0.0.0.0"),
        ("server", "--port", "http"),
        ("server", "extra"),
        ("worker",),
        ("store",),
        (),
    ],
)
def test_another_one_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        Command("planted", arguments, {}).parsed()


def test_servers_and_workers_are_started_everywhere() -> None:
    """Each folder has both."""
    for folder in FOLDERS:
        started = {one.arguments[0] for one in COMMANDS if folder in one.where}
        assert started == {"server", "worker"}


@pytest.mark.parametrize(
    "command",
    [one for one in COMMANDS if one.arguments[0] == "worker" and one.is_of_compose],
    ids=lambda command: command.where,
)
def test_the_agents_of_the_compose_files_can_be_loaded(command: Command) -> None:
    """In manifests and units they are the reader's own."""
    [agent] = command.parsed().params["agents"]
    place, _, name = agent.partition(":")
    folder, _, file = place.rpartition("/")
    [found] = [each / file for each in MOUNTED[folder] if (each / file).exists()]
    loaded, _ = load_agent(f"{found}:{name}")
    assert isinstance(loaded, Agent)
