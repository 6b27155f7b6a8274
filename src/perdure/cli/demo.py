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
@click.option("--keep", is_flag=True, help="Keep the store, the ledger and the effects.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def durability(directory: Path, model: str | None, keep: bool, as_json: bool) -> None:
    """Kill an agent with SIGKILL at its worst moments and let it finish.

    The agent surveys DIRECTORY (by default the current one): it reads real files, saves a report
    and publishes a line, in a real process over SQLite. It is killed seven times. Afterwards its
    log, an external ledger of what really happened, and an undisturbed run are compared.
    """
    options = [
        *([f"--model={model}"] if model else []),
        *(["--keep"] if keep else []),
        *(["--json"] if as_json else []),
    ]
    demonstration = [sys.executable, "-m", "perdure.testing.demo", *options, "--", str(directory)]
    sys.exit(subprocess.call(demonstration))
