"""Options and errors that all commands share."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click

from perdure.cli.output import plain
from perdure.core.errors import (
    BrokenChain,
    InvalidInput,
    KeyReused,
    LimitExceeded,
    NotFound,
    PerdureError,
    Quarantined,
    Refused,
    RunCancelled,
    RunFailed,
    StoreLocked,
    Unavailable,
    WorkerRefused,
)

DEFAULT_STORE = "sqlite:///.perdure/perdure.db"
EXIT_CODES: tuple[tuple[type[PerdureError], int], ...] = (
    (InvalidInput, 2),
    (LimitExceeded, 2),
    (NotFound, 3),
    (RunFailed, 4),
    (RunCancelled, 5),
    (Refused, 6),
    (KeyReused, 6),
    (StoreLocked, 7),
    (BrokenChain, 8),
    (Quarantined, 10),
    (Unavailable, 11),
    (WorkerRefused, 12),
)
OTHER_ERROR = 1
INTERRUPTED = 130

store_option = click.option(
    "--store",
    default=DEFAULT_STORE,
    envvar="PERDURE_STORE",
    show_default=True,
    help="Where the log is kept: sqlite:///FILE, or postgresql://, redis:// or nats://HOST.",
)
policy_option = click.option(
    "--policy",
    type=click.Path(dir_okay=False),
    envvar="PERDURE_POLICY",
    show_envvar=True,
    help="A file of rules (TOML): what calls are allowed, denied, or put to people.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def exit_code(error: PerdureError) -> int:
    """Return the process exit code for an error; docs/reference/cli.md lists them."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), OTHER_ERROR)


def command_body(
    function: Callable[..., Coroutine[Any, Any, int | None]],
) -> Callable[..., None]:
    """Run an async command; turn our errors into one clear line and an honest exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> int | None:
        return asyncio.run(function(*args, **kwargs))

    return blocking_body(run)


def blocking_body(function: Callable[..., int | None]) -> Callable[..., None]:
    """Do what `command_body` does for a command that needs no event loop."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            code = function(*args, **kwargs)
        except PerdureError as error:
            click.echo(f"perdure: {plain(error)}", err=True)
            sys.exit(exit_code(error))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(OTHER_ERROR)
        except OSError as error:
            click.echo(f"perdure: {plain(error)}", err=True)
            sys.exit(OTHER_ERROR)
        sys.exit(code or 0)

    return wrapper
