"""Isolated tools run in a process of their own, and nothing of it outlives the call's end."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.core.commands import ReportToolLost, ReportToolResult
from perdure.worker import processes, tool
from perdure.worker.origin import Origin, load, origin_of
from perdure.worker.outcome import Outcome
from tests.worker import isolated_tools
from tests.worker.helpers import Desk, reached

FAR = {"at": {"x": 1}, "when": "2026-01-02T00:00:00Z"}


class Fifo:
    """A pipe with a name: what holds it open is alive."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fifo"
        os.mkfifo(self.path)
        self._reader = asyncio.StreamReader()

    async def line(self) -> str:
        """Return what the first writer says."""
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb")
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self._reader), pipe)
        return (await asyncio.wait_for(self._reader.readline(), 20)).decode().strip()

    async def all_gone(self) -> bool:
        """Return when nobody holds it open any more."""
        return await asyncio.wait_for(self._reader.read(), 20) == b""


@pytest.fixture
async def fifo(tmp_path: Path) -> Fifo:
    return Fifo(tmp_path)


async def test_it_runs_in_another_process() -> None:
    """With typed arguments and the context; the result comes back as JSON."""
    async with Desk(isolated_tools.look) as desk:
        with reached() as sites:
            report = await desk.call(FAR)
        assert report.ok, report.content
        assert report.content.pop("pid") != os.getpid()
        assert report.content == {
            "at": {"x": 1, "y": 3},
            "year": 2026,
            "key": "key-1",
            "session": ["t1", "helper", "s1"],
        }
        assert sites == ["tool.before", "tool.after"]
        await desk.nothing_more()


async def test_async_tools_too() -> None:
    """On a loop of their own."""
    async with Desk(isolated_tools.look_async) as desk:
        assert (await desk.call({"n": 1})).content == 2


async def test_what_it_prints_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """And it reads nothing: the pipes of the worker are out of its reach."""
    async with Desk(isolated_tools.talk) as desk:
        assert (await desk.call()).content == ""
    out, err = capfd.readouterr()
    assert out == ""
    assert "said on stdout" in err
    assert "said by a child" in err


async def test_the_environment_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools find their keys there."""
    monkeypatch.setenv("TOOL_KEY", "abc")
    async with Desk(isolated_tools.environment) as desk:
        assert (await desk.call({"name": "TOOL_KEY"})).content == "abc"


@pytest.mark.parametrize(
    "how,kind,content",
    [
        ("raise", "raised", "ValueError: bad"),
        ("exit", "raised", "SystemExit: 3"),
        ("bytes", "unserialisable", "The tool ran, but its result cannot be recorded: `bytes`"),
        ("large", "result_too_large", "The tool ran, but its result has 1048578 bytes"),
    ],
)
async def test_a_failure_is_reported_as_in_this_process(how: str, kind: str, content: str) -> None:
    """The tool ran and said so, once or not."""
    async with Desk(isolated_tools.fail) as desk:
        report = await desk.call({"how": how})
        assert (report.ok, report.kind) == (False, kind)
        assert report.content.startswith(content)


@pytest.mark.parametrize(
    "how,reason",
    [
        ("vanish", "the tool's process exited with code 3 before it answered"),
        ("kill", "the tool's process was killed by SIGKILL before it answered"),
        ("ended", "the tool's process was killed by SIGTERM before it answered"),
        ("forked", "the tool's process was killed by SIGKILL before it answered"),
    ],
)
async def test_a_process_that_dies_leaves_the_outcome_unknown(how: str, reason: str) -> None:
    """Also while a fork of it holds its pipes."""
    async with Desk(isolated_tools.fail) as desk:
        report = await desk.call({"how": how})
        assert report == ReportToolLost(call="1.1.t0", attempt=1, reason=reason)
        await desk.nothing_more()


async def test_invalid_arguments_start_no_process() -> None:
    """They are checked here."""
    async with Desk(isolated_tools.look_async) as desk:
        assert (await desk.call({"n": "a"})).kind == "invalid_arguments"
        assert not desk.worker._processes._alive


@pytest.mark.parametrize("made", [isolated_tools.hold_read, isolated_tools.hold_once])
async def test_a_timeout_kills_the_process_and_what_it_started(made: Any, fifo: Fifo) -> None:
    """A once tool may have acted before."""
    async with Desk(made) as desk:
        ending = asyncio.ensure_future(desk.call({"fifo": str(fifo.path)}))
        await fifo.line()
        desk.clock.advance(5_000)
        report = await ending
        if made is isolated_tools.hold_once:
            assert report.reason == "the tool did not answer within 5 s"
        else:
            assert report.content == "The tool did not answer within 5 s."
        assert await fifo.all_gone()
        await desk.nothing_more()


async def test_a_cancel_kills_the_process_and_what_it_started(fifo: Fifo) -> None:
    """And nothing is reported."""
    async with Desk(isolated_tools.hold_read) as desk:
        task = desk.start(desk.tool_task({"fifo": str(fifo.path)}))
        await fifo.line()
        desk.worker.cancel(task)
        assert await fifo.all_gone()
        await desk.nothing_more()


async def test_close_kills_the_process_and_what_it_started(fifo: Fifo) -> None:
    """And waits until it is gone."""
    async with Desk(isolated_tools.hold_read) as desk:
        desk.start(desk.tool_task({"fifo": str(fifo.path)}))
        pid = int(await fifo.line())
        await desk.worker.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert await fifo.all_gone()


async def test_a_cancel_before_the_process_is_up_leaves_none() -> None:
    """Wherever the start of the process stands."""
    for turns in range(6):
        async with Desk(isolated_tools.look_async) as desk:
            task = desk.start(desk.tool_task({"n": 1}))
            for _ in range(turns):
                await asyncio.sleep(0)
            desk.worker.cancel(task)
        assert not desk.worker._processes._alive
        assert desk.reports.empty()


async def test_a_process_that_cannot_be_started_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing ran: not even a once call is unknown."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    async with Desk(isolated_tools.fail) as desk:
        report = await desk.call({"how": "raise"})
        assert (report.ok, report.kind) == (False, "not_started")
        assert "No such file" in report.content


async def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot fill the worker's memory."""
    monkeypatch.setattr(processes, "ANSWER_BYTES_MAX", 10)
    async with Desk(isolated_tools.fail) as desk:
        report = await desk.call({"how": "bytes"})
        assert isinstance(report, ReportToolLost | ReportToolResult)


PROGRAM = """
import asyncio, os, sys
from perdure.ports.workers import ToolTask
from perdure.testing.clock import FakeClock
from perdure.worker import Agent, LocalWorker, tool
from tests.worker import isolated_tools

@tool(effect="read", isolated=True)
def here(fifo: str) -> str:
    return f"{__name__} {os.getpid()}"

async def main():
    agent = Agent("a", model="scripted", tools=[here, isolated_tools.hold_read])
    worker = LocalWorker([agent], None, FakeClock())
    reports = asyncio.Queue()
    name, fifo = sys.argv[1:]
    task = ToolTask(("t", "a", "s"), "r", "c", 1, "a", name, "read", {"fifo": fifo}, "k")
    worker.start(task, lambda task, report: reports.put_nowait(report), None)
    print(os.getpid(), (await reports.get()).content)
    await worker.close()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_text(PROGRAM)
    return path


def _environment(*folders: Path) -> dict[str, str]:
    """Ours, with more to import from: the folder of `tests` is always there."""
    path = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[2]), *map(str, folders)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def test_a_tool_of_a_program_is_found_without_running_the_program(program: Path) -> None:
    """`__main__` is imported by its file, here one without a suffix, under another name."""
    done = subprocess.run(
        [sys.executable, program, "here", ""],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    pid, name, other = done.stdout.split()
    assert name == "__perdure_file__"
    assert pid != other


def test_a_tool_of_a_program_run_as_a_module_is_found_by_name(program: Path) -> None:
    """`python -m package` leaves the module's real name in its spec."""
    program.rename(program.with_name("some_program.py"))
    done = subprocess.run(
        [sys.executable, "-m", "some_program", "here", ""],
        env=_environment(program.parent),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.split()[1] == "some_program"


async def test_the_process_dies_with_its_worker(program: Path, fifo: Fifo) -> None:
    """Also if the worker has no time to say goodbye."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, program, "hold_read", fifo.path, env=_environment()
    )
    await fifo.line()
    worker.send_signal(signal.SIGKILL)
    await worker.wait()
    assert await fifo.all_gone()


def _by_path(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("json", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOLS = """
from perdure.worker import tool

@tool(effect="read", isolated=True)
def look(at: dict) -> str:
    return f"{__name__} {at}"
"""


async def test_a_tool_of_a_file_loaded_by_path_is_found(tmp_path: Path) -> None:
    """Although its name leads to another module, which it must not replace."""
    path = tmp_path / "json.py"
    path.write_text(TOOLS)
    async with Desk(_by_path(path).look) as desk:
        assert (await desk.call({"at": {}})).content == "__perdure_file__ {}"


async def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    """It was fine when the worker imported it."""
    path = tmp_path / "gone.py"
    path.write_text(TOOLS)
    made = _by_path(path).look
    path.write_text("import no_such_module")
    async with Desk(made) as desk:
        report = await desk.call({"at": {}})
        assert (report.ok, report.kind) == (False, "not_started")
        assert report.content == (
            f"Cannot import look from {path}: ModuleNotFoundError: No module named 'no_such_module'"
        )


def test_an_origin_is_the_place_of_the_function() -> None:
    """A function that is decorated too is found by the name it stands under."""
    origin = origin_of(isolated_tools.hold, "hold")
    assert origin == Origin("tests.worker.isolated_tools", isolated_tools.__file__, "hold")
    assert load(origin) is isolated_tools.hold


def test_a_local_function_has_none() -> None:
    """And so cannot be isolated."""

    def local() -> None: ...

    with pytest.raises(Exception, match="define the function at the top of a module"):
        tool(isolated=True)(local)


def test_an_outcome_survives_the_pipe() -> None:
    """It is what the child sends."""
    outcome = Outcome(False, {"a": [1]}, "raised")
    assert msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome) == outcome
