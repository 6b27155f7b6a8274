"""A server on the command line: where it is, which key opens it, and how its refusals read."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from perdure.cli.common import DEFAULT_STORE, store_option
from perdure.cli.refusals import refusal
from perdure.core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perdure.client import AsyncClient

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")

FOLDER = ".perdure"
KEY_FILE, URL_FILE = "dev.key", "dev.url"
URL_VARIABLE, KEY_VARIABLE = "PERDURE_URL", "PERDURE_KEY"
LOCAL_HOST = "http://127.0.0.1:"
LOCAL_URL = f"{LOCAL_HOST}4000"

url_option = click.option(
    "--url",
    envvar=URL_VARIABLE,
    help=f"The server; else that of `perdure dev` in this folder, or {LOCAL_URL}.",
)
key_option = click.option(
    "--key", envvar=KEY_VARIABLE, help="An API key. That of `perdure dev` needs no --url."
)


class Access(NamedTuple):
    """A server and the key to it. `kept_in` is the file that the key is from, if none was given."""

    url: str
    key: str
    kept_in: str | None = None

    @property
    def option(self) -> str:
        """What has to be said to a further command about this server, where it is not set."""
        return "" if os.environ.get(URL_VARIABLE) == self.url else f" --url {self.url}"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """Open a client; what the server refuses is raised as a sentence for a person."""
        from perdure.client import AsyncClient

        with self.explaining():
            async with AsyncClient(self.url, self.key) as client:
                yield client

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Say of what is refused, in words, what it means and what can be done about it."""
        from perdure.client import ApiError

        try:
            yield
        except ApiError as error:
            raise refusal(error, self.url, self.key, self.kept_in) from None


def access(url: str | None, key: str | None) -> Access:
    """Return how to reach the server that the options name, or that `perdure dev` runs here.

    The key of `perdure dev` is an admin's: it goes to this machine and nowhere else.
    """
    home = home_url(Path(FOLDER))
    where = (url or home).rstrip("/")
    if key:
        return Access(where, key)
    here = where.replace("http://localhost:", LOCAL_HOST) in (home, LOCAL_URL)
    kept = kept_key(Path(FOLDER)) if here else None
    if not kept:
        raise InvalidInput(
            f"the server at {where} needs an API key: give --key, or set {KEY_VARIABLE}"
        )
    return Access(where, kept, str(Path(FOLDER) / KEY_FILE))


def home_url(folder: Path) -> str:
    """Return where the `perdure dev` of a folder runs: what it has noted there, or the usual place.

    Only an address of this machine counts: the key goes where it says.
    """
    path = folder / URL_FILE
    noted = path.read_text().strip() if path.is_file() else ""
    port = noted.removeprefix(LOCAL_HOST)
    return noted if noted.startswith(LOCAL_HOST) and port.isdecimal() else LOCAL_URL


def kept_key(folder: Path) -> str | None:
    """Return the key that `perdure dev` has kept in a folder, if it has."""
    path = folder / KEY_FILE
    return path.read_text().strip() if path.is_file() else None


def server_options(command: Command) -> Command:
    """Give a command `--url` and `--key`; see `access`."""
    return url_option(key_option(command))


def place_options(
    command: Callable[..., Coroutine[Any, Any, T]],
) -> Callable[..., Coroutine[Any, Any, T]]:
    """Give a command `--store`, `--url` and `--key`, and tell it the `server` they choose, if any.

    It goes below `command_body`, which turns wrong options into a line.
    """

    @functools.wraps(command)
    async def wrapper(*, url: str | None, key: str | None, **given: Any) -> T:
        return await command(server=_chosen(url, key), **given)

    for option in (
        click.option("--key", envvar=KEY_VARIABLE, help="An API key of that server."),
        click.option("--url", envvar=URL_VARIABLE, help="A server, instead of a store."),
        store_option,
    ):
        wrapper = option(wrapper)
    return wrapper


def _chosen(url: str | None, key: str | None) -> Access | None:
    """Return the server that was named, on the command line or in the environment.

    If nothing is named, and `perdure dev` has been here and no run without a server, it is that of
    `perdure dev`. None for a store.
    """
    context = click.get_current_context()
    source = context.get_parameter_source
    named = {name: source(name) is ParameterSource.COMMANDLINE for name in ("store", "url")}
    if named["store"] and named["url"]:
        raise InvalidInput("--store and --url name two places; give one of them")
    if url is None and source("store") is ParameterSource.DEFAULT:
        has_store = Path(DEFAULT_STORE.removeprefix("sqlite:///")).exists()
        if not has_store and kept_key(Path(FOLDER)) is not None:
            return access(None, key)
    return None if url is None or named["store"] else access(url, key)
