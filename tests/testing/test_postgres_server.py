"""A PostgreSQL that tests start for themselves."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perdure.testing.servers.postgres import PostgresServer, binaries


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> PostgresServer:
    """Nothing but a check that there are programs to start: each test starts its own server."""
    return postgres


def test_a_database_is_empty_and_its_own(server: PostgresServer) -> None:
    one, other = server.fresh_database(), server.fresh_database()
    server.sql("CREATE TABLE facts (n int)", one)
    assert one != other
    with pytest.raises(RuntimeError, match="does not exist"):
        server.sql("SELECT * FROM facts", other)


@pytest.mark.usefixtures("server")
def test_what_was_committed_survives_every_end() -> None:
    with PostgresServer.start(password="p@ss/w:rd") as mine:
        mine.sql("CREATE TABLE facts (n int)")
        for end in (mine.kill, mine.quit_immediately):
            mine.sql("INSERT INTO facts VALUES (1)")
            end()
            mine.start_again()
        assert mine.sql("SELECT count(*) FROM facts") == "2"
        assert "p%40ss%2Fw%3Ard@" in mine.url
        mine.freeze()
        mine.thaw()
        assert mine.sql("SELECT current_setting('fsync')") == "on"


@pytest.mark.usefixtures("server")
def test_a_standby_follows_until_it_is_promoted() -> None:
    with PostgresServer.start() as primary:
        primary.sql("CREATE TABLE facts AS SELECT 1 AS n")
        with primary.standby() as standby:
            assert standby.sql("SELECT pg_is_in_recovery(), count(*) FROM facts") == "t|1"
            standby.promote()
            assert standby.sql("SELECT pg_is_in_recovery()") == "f"


def test_it_ends_with_whoever_started_it(server: PostgresServer) -> None:
    start = (
        "import os, sys; from perdure.testing.servers.postgres import PostgresServer; "
        "server = PostgresServer.start(); print(server.pid, server.port, flush=True); os._exit(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", start], capture_output=True, text=True, check=False
    )
    pid, port = map(int, done.stdout.split())
    end = time.monotonic() + 60
    while _is_there(pid):
        assert time.monotonic() < end
        time.sleep(0.05)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def _is_there(pid: int) -> bool:
    """Say whether a process runs; one that nobody has buried yet does not."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and ") Z" not in state.read_text()


def test_the_programs_are_found_once(server: PostgresServer) -> None:
    assert binaries() == binaries()
    assert server.version >= 15
