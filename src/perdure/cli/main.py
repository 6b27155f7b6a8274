"""`perdure`: the entry point and its commands."""

from __future__ import annotations

import importlib.metadata
import logging

import click

from perdure import RedactingFilter
from perdure.cli.approvals import approvals
from perdure.cli.budget import budget
from perdure.cli.chat import chat
from perdure.cli.demo import demo
from perdure.cli.doctor import doctor
from perdure.cli.new import new
from perdure.cli.nouns import NOUNS
from perdure.cli.policy import policy
from perdure.cli.run import resume, run
from perdure.cli.runs import runs
from perdure.cli.send import send
from perdure.cli.server import dev, server, worker
from perdure.cli.sessions import sessions
from perdure.cli.standing import COMMANDS
from perdure.cli.store import store
from perdure.cli.verify import verify

HELP = """A durable runtime for LLM agents.

An agent that was killed goes on at the step where it stopped. Try it:

\b
  perdure demo durability
  perdure run examples/librarian.py:librarian "What is in this folder?"
"""


@click.group(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("perdure"), prog_name="perdure")
@click.option("--verbose", is_flag=True, help="Log what the runtime does to stderr.")
def main(verbose: bool) -> None:
    """Dispatch to a command."""
    if verbose:
        logging.basicConfig(level=logging.DEBUG)
        for handler in logging.getLogger().handlers:
            handler.addFilter(RedactingFilter())
    else:
        logging.getLogger("perdure").addHandler(logging.NullHandler())


OF_THIS_MACHINE = (new, run, resume, dev, server, worker, verify, doctor, demo, store, policy)
OF_A_SERVER = (send, chat, *NOUNS)

for command in (*OF_THIS_MACHINE, *OF_A_SERVER, runs, approvals, budget, sessions):
    main.add_command(command)
for command in COMMANDS:
    approvals.add_command(command)
