"""A store's URL may hold a password: no error and no log line repeats it."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from perdure.bootstrap import Runtime
from perdure.cli.main import main
from perdure.core.errors import PerdureError
from tests.canaries.agents import Vault, clerk
from tests.canaries.places import CANARIES, found

PASSWORD = CANARIES["DATABASE"]


@pytest.fixture
def closed() -> Iterator[int]:
    """A port at which nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


URLS = [
    "postgresql://me:{password}@127.0.0.1:{port}/db",
    "postgresql://me:{password}@127.0.0.1:{port}/db?no_such_setting=1",
    "redis://me:{password}@127.0.0.1:{port}/0",
    "rediss://:{password}@127.0.0.1:{port}/0",
    "nats://me:{password}@127.0.0.1:{port}",
    "nats://{password}@127.0.0.1:{port}?no_such_setting=1",
    "mysql://me:{password}@127.0.0.1:{port}/db",
    "postgres://me:{password}@127.0.0.1:{port}/db",
    "sqlite://me:{password}@127.0.0.1:{port}",
    "postgresql://me:{password}@127.0.0.1:no-port/db",
]


@pytest.mark.parametrize("url", URLS)
async def test_an_error_does_not_repeat_the_password(url: str, closed: int) -> None:
    """Whether the server is away or the URL is wrong; in the whole chain of exceptions."""
    url = url.format(password=PASSWORD, port=closed)
    out, handler = io.StringIO(), logging.StreamHandler()
    handler.setStream(out)
    root, before = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    told: list[str] = []
    try:
        runtime = Runtime(
            url,
            [clerk(Path("/nowhere"), lambda request: "")],
            credential_providers={"vault": Vault()},
        )
        async with runtime:
            pytest.fail("nothing is there to be opened")
    except PerdureError as error:
        link: BaseException | None = error
        while link is not None:
            told += [str(link), repr(link)]
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    assert told
    places = {"the error": "\n".join(told).encode(), "log lines": out.getvalue().encode()}
    assert found({"DATABASE": PASSWORD}, places) == []


@pytest.mark.parametrize("url", URLS)
def test_the_command_line_does_not_repeat_it_either(url: str, closed: int) -> None:
    """Neither as an error nor among its checks."""
    url = url.format(password=PASSWORD, port=closed)
    done = CliRunner().invoke(main, ["doctor", "--store", url])
    places = {"what it said": done.output.encode(), "its error": repr(done.exception).encode()}
    assert found({"DATABASE": PASSWORD}, places) == []
    assert done.exit_code != 0
