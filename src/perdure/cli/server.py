"""`perdure dev`, `perdure server` and `perdure worker`: agents as a service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from perdure.bootstrap import KEY_VARIABLES, SQLITE_PREFIX, open_service
from perdure.cli.access import (
    FOLDER,
    KEY_FILE,
    KEY_VARIABLE,
    URL_FILE,
    URL_VARIABLE,
    access,
    home_url,
    kept_key,
    server_options,
)
from perdure.cli.common import EXIT_CODES, command_body, policy_option
from perdure.cli.doctor import missing_model
from perdure.cli.loading import load_agent, load_policy
from perdure.cli.output import plain
from perdure.cli.refusals import WORKER_KEY_PREFIX
from perdure.core.errors import InvalidInput, WorkerRefused

if TYPE_CHECKING:
    from perdure.server.service import Service

STORE_FILE = "server.db"
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  nothing is bound here
"""Whoever listens there is reached at addresses that it does not know."""
RESTART_SECONDS_MIN, RESTART_SECONDS_MAX = 0.5, 15.0
LEAVE_SECONDS_MAX = 35
STORE_PATIENCE_S = 60
"""How long a server waits when it starts for a store that others share, and that does not answer.
"""
CLAIM_VARIABLE = "PERDURE_CLAIM_TOKEN"
REFUSED = dict(EXIT_CODES)[WorkerRefused]
JOINED = "the worker has joined"
"""What a worker logs when the server has let it in."""

folder_option = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=FOLDER,
    envvar="PERDURE_FOLDER",
    show_default=True,
    help="Where sessions, agents and keys are kept.",
)
port_option = click.option("--port", type=click.IntRange(0, 65535), default=4000, show_default=True)


@click.command(epilog="Example: perdure dev examples/librarian.py:librarian")
@click.argument("agents", nargs=-1)
@port_option
@policy_option
@folder_option
@command_body
async def dev(agents: Sequence[str], port: int, policy: str | None, folder: Path) -> None:
    """Run a server with a worker for AGENTS (FILE.py:NAME ...), on this machine, for this machine.

    The worker is a process of its own, which is started again when it ends. Without AGENTS there is
    none: start one elsewhere with `perdure worker`. Ctrl-C stops everything; what was under way
    goes on at the next start.
    """
    found = [load_agent(agent)[0] for agent in agents]
    names = [agent.name for agent in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"two agents are named {name!r}: one worker can serve only one")
    for agent in found:
        if hint := missing_model(agent, os.environ):
            click.echo(hint, err=True)
    rules = None if policy is None else load_policy(policy)[0]
    store = f"{SQLITE_PREFIX}{folder / STORE_FILE}"
    opening = open_service(folder, store, os.environ, policy=rules)
    await _serve(opening, "127.0.0.1", port, folder, agents, is_dev=True, talks=names[:1])


@click.command(epilog="Example: perdure server --host 0.0.0.0 --port 4000")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@port_option
@folder_option
@click.option(
    "--store",
    envvar="PERDURE_STORE",
    show_envvar=True,
    help="Where sessions are kept: sqlite:///FILE, in the folder if none is named, or a server "
    "that several can share: postgresql://, redis:// or nats://HOST.",
)
@click.option(
    "--catalog",
    envvar="PERDURE_CATALOG",
    show_envvar=True,
    help="Where agents and keys are kept; without it in the folder, or where a shared store is.",
)
@click.option(
    "--cluster",
    envvar="PERDURE_CLUSTER",
    show_envvar=True,
    help="Where servers that share a store hear of each other; without it where the store is.",
)
@click.option(
    "--name",
    envvar="PERDURE_NAME",
    show_envvar=True,
    help="What the others call this server; without it the machine's name.",
)
@click.option(
    "--advertise",
    envvar="PERDURE_ADVERTISE",
    show_envvar=True,
    metavar="URL",
    help="Where this server is reached by others; without it where it listens.",
)
@command_body
async def server(
    host: str,
    port: int,
    folder: Path,
    store: str | None,
    catalog: str | None,
    cluster: str | None,
    name: str | None,
    advertise: str | None,
) -> None:
    """Run a server: REST, sockets for workers and clients. It executes nothing itself.

    As long as there is no key it prints a link, good once and for an hour, and a code: they make
    the first admin key. With PERDURE_BOOTSTRAP_KEY in the environment that one is used instead.

    Servers that name the same store share its work: any of them takes any request, and goes on with
    what another one left. They need the same PERDURE_KEY_PEPPER.
    """
    if advertise is not None and not advertise.startswith(("http://", "https://")):
        raise InvalidInput(f"--advertise {plain(advertise)} is no URL: expected http://HOST:PORT")
    opening = open_service(
        folder,
        store or f"{SQLITE_PREFIX}{folder / STORE_FILE}",
        os.environ,
        offers_setup=True,
        name=name or socket.gethostname(),
        catalog=catalog,
        cluster=cluster,
        url=advertise,
        patience_s=STORE_PATIENCE_S,
        on_waiting=lambda why: click.echo(f"waiting for the store: {plain(why)}", err=True),
    )
    await _serve(opening, host, port, folder, (), is_dev=False)


@click.command(epilog="Example: perdure worker support.py:support")
@click.argument("agents", nargs=-1, required=True)
@server_options
@click.option("--name", "worker_id", help="Its id; without one it is made of host and process.")
@click.option("--concurrency", type=click.IntRange(1), default=100, show_default=True)
@click.option("--gard", type=click.IntRange(1), help="Serve this gard alone, by its number.")
@click.option("--claim-token", envvar=CLAIM_VARIABLE, help="What the gard is claimed with.")
@click.option("--supervised", is_flag=True, hidden=True, help="End when standard input ends.")
@command_body
async def worker(
    agents: Sequence[str],
    url: str | None,
    key: str | None,
    worker_id: str | None,
    concurrency: int,
    gard: int | None,
    claim_token: str | None,
    supervised: bool,
) -> None:
    """Execute the calls of AGENTS (FILE.py:NAME ...) for a server: tools and providers' keys.

    SIGTERM and Ctrl-C let it finish what it has.
    """
    from perdure.bootstrap import Worker

    url, key, _ = access(url, key)
    found = [load_agent(agent)[0] for agent in agents]
    names = ", ".join(plain(agent.name) for agent in found)
    click.echo(f"worker for {names} at {url}", err=True)
    if key.startswith(WORKER_KEY_PREFIX):
        click.echo(
            f"a worker's key defines no agents: {names} must be there already, or nothing will "
            "come. Somebody with an admin's key starts this worker once, or defines them with "
            "`perdure agents create`",
            err=True,
        )
    _tell_of_the_connection()
    working = Worker(
        url,
        key,
        worker_id=worker_id,
        concurrency_max=concurrency,
        gard=None if gard is None else str(gard),
        claim_token=claim_token,
    )
    orphaned = asyncio.ensure_future(_end_of_input()) if supervised else None
    if orphaned is not None:
        orphaned.add_done_callback(lambda ended: None if ended.cancelled() else working.stop())
    try:
        await working.run(found)
    finally:
        if orphaned is not None:
            orphaned.cancel()


class ConnectionNews(logging.Handler):
    """Says on stderr what becomes of a worker's connection: what has not changed, only once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._has_joined = False
        self._said = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Say what the worker logs."""
        text = plain(record.getMessage())
        if text == JOINED:
            text = "connected again" if self._has_joined else "connected"
            self._has_joined = True
        if text != self._said:
            click.echo(text, err=True)
        self._said = text


def _tell_of_the_connection() -> None:
    log = logging.getLogger("perdure.worker")
    log.setLevel(logging.INFO)
    log.addHandler(ConnectionNews())


async def _end_of_input() -> None:
    """Wait until whoever started this process is gone: only it holds the other end."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    try:
        while await reader.read(1024):
            pass
    finally:
        transport.close()


async def _serve(
    opening: contextlib.AbstractAsyncContextManager[tuple[Service, str | None]],
    host: str,
    port: int,
    folder: Path,
    agents: Sequence[str],
    *,
    is_dev: bool,
    talks: Sequence[str] = (),
) -> None:
    from perdure.server.serving import serve

    async with opening as (service, made), _Children() as children:
        key, noted = made, folder / URL_FILE
        noted.unlink(missing_ok=True)
        if is_dev:
            key = _given_key(os.environ) or _keep_key(folder, made)
            if agents and key is None:
                raise InvalidInput(
                    f"{folder} has keys that were made elsewhere and none for a worker here: name "
                    "another --folder, or give an admin key in PERDURE_BOOTSTRAP_KEY"
                )

        def ready(url: str) -> None:
            if host not in EVERYWHERE:
                service.url = service.url or url
            click.echo(f"perdure is at {url}   (documentation: {url}/docs)")
            if service.setup is not None:
                link = f"{_reachable(url)}/setup/{service.setup.token}"
                click.echo(f"make the first admin key at {link}")
                click.echo(f"with the code {service.setup.code}, within an hour")
            if is_dev and key:
                click.echo(f"key: {key}")
                noted.write_text(f"{url}\n")
                for name in talks:
                    click.echo(f"talk with it: perdure chat {plain(name)}{_more(url, key)}")
            if agents and key:
                children.start(agents, url, key)

        try:
            await serve(service, host, port, ready, children.stop)
        finally:
            noted.unlink(missing_ok=True)


def _more(url: str, key: str) -> str:
    """Return what a command in this folder has to be told to reach a server that runs here."""
    here = Path(FOLDER)
    is_found = home_url(here) == url and kept_key(here) == key
    return "" if is_found else f" --url {url} --key KEY"


def _reachable(url: str) -> str:
    """Return the URL of a server that listens everywhere as it is reached from this machine."""
    return url.replace("//0.0.0.0:", "//localhost:").replace("//[::]:", "//localhost:")


class _Children:
    """The worker of `perdure dev`: a process that is started again when it ends."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._leaving = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    def start(self, agents: Sequence[str], url: str, key: str) -> None:
        """Start the worker, and keep it running."""
        self._task = asyncio.ensure_future(self._keep(agents, url, key))

    async def stop(self) -> None:
        """Have the worker finish what it has, and end."""
        self._leaving.set()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), LEAVE_SECONDS_MAX)
            if self._process.returncode is None:
                self._process.kill()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self, agents: Sequence[str], url: str, key: str) -> None:
        delay = RESTART_SECONDS_MIN
        environment = {**os.environ, URL_VARIABLE: url, KEY_VARIABLE: key}
        while not self._leaving.is_set():
            began = asyncio.get_running_loop().time()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "perdure", "worker", "--supervised", *agents),
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            code = await self._process.wait()
            if self._leaving.is_set():
                return
            if code == REFUSED:
                click.echo(
                    "the worker is not started again, since the server refuses its key: give an "
                    f"admin key in {KEY_VARIABLES[0]}, and start again",
                    err=True,
                )
                return
            lived = asyncio.get_running_loop().time() - began
            delay = RESTART_SECONDS_MIN if lived > RESTART_SECONDS_MAX else delay * 2
            delay = min(delay, RESTART_SECONDS_MAX)
            click.echo(f"the worker ended ({code}); it is started again in {delay:.1f} s", err=True)
            await asyncio.sleep(delay)


def _keep_key(folder: Path, made: str | None) -> str | None:
    """Return the key of a server for this machine: the one just made, or the one that was kept."""
    path = folder / KEY_FILE
    if made is not None:
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(made)
    return kept_key(folder)


def _given_key(environment: Mapping[str, str]) -> str | None:
    return next((environment[name] for name in KEY_VARIABLES if environment.get(name)), None)
