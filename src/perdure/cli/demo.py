"""`perdure demo`: see for yourself that an agent survives SIGKILL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click


@click.group()
def demo() -> None:
    """Demonstrations that can fail."""


@demo.command(epilog="Example: perdure demo durability ~/projects/mine")
@click.argument(
    "directory", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--model", help="A real model instead of the function: anthropic:claude-sonnet-5.")
@click.option("--break", "mutant", help="Break the engine on purpose: the verdict must say so.")
@click.option("--keep", is_flag=True, help="Keep the store, the ledger and the effects.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def durability(
    directory: Path, model: str | None, mutant: str | None, keep: bool, as_json: bool
) -> None:
    """Kill an agent with SIGKILL at its worst moments and let it finish.

    The agent surveys DIRECTORY (by default the current one): it reads real files, saves a report,
    publishes a line and mails it, in a real process over SQLite. It is killed seven times.
    Afterwards its log, an external ledger of what really happened, and an undisturbed run are
    compared. With --break the engine is broken in one place, and the verdict must turn red: where
    seven kills do not show it, the rig follows that must.
    """
    options = [
        *([f"--model={model}"] if model else []),
        *([f"--break={mutant}"] if mutant else []),
        *(["--keep"] if keep else []),
        *(["--json"] if as_json else []),
    ]
    demonstration = [sys.executable, "-m", "perdure.testing.demo", *options, "--", str(directory)]
    sys.exit(subprocess.call(demonstration))


@demo.command("kill-me", epilog="Example: perdure demo kill-me --kill-every-seconds 2")
@click.option("--kill-every-seconds", type=float, help="Kill by itself as well, at random.")
@click.option("--seed", type=int, default=0, help="Which random.", show_default=True)
@click.option("--rounds", type=int, help="End after so many errands; else with Ctrl-C.")
@click.option("--directory", type=click.Path(file_okay=False), help="Keep it here, or go on.")
@click.option("--break", "mutant", help="Break the engine on purpose: it must turn red.")
def kill_me(
    kill_every_seconds: float | None,
    seed: int,
    rounds: int | None,
    directory: str | None,
    mutant: str | None,
) -> None:
    """Run agents for ever, and compare while you kill them.

    A ledger process has every effect; an agent process runs errand after errand with one tool of
    each effect class, one of them in a process of its own. Their ids are shown: kill -9 the agent
    or a tool as often as you like. What was killed is started again, and every errand that has
    ended is compared with the ledger: green as long as all agrees, else red and exit code 1. Kill
    the supervisor and everything ends, with nothing lost (--directory goes on); kill the ledger and
    there is no witness any more: exit code 2, no verdict.
    """
    given = {
        "--kill-every-seconds": kill_every_seconds,
        "--seed": seed,
        "--rounds": rounds,
        "--directory": directory,
        "--break": mutant,
    }
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    demonstration = subprocess.Popen([sys.executable, "-m", "perdure.testing.kill_me", *options])
    while True:
        try:
            sys.exit(demonstration.wait())
        except KeyboardInterrupt:
            # Ctrl-C reaches both: the demonstration says its last words itself.
            continue
