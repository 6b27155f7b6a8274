"""`perdure new`: what it makes runs, and passes its own tests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perdure.cli.new import NAME_CHARS_MAX, rendered
from tests.cli.hosted import Hosted
from tests.cli.terminal import Terminal

SECONDS_MAX = 60


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a project that was just made."""
    folder = tmp_path_factory.mktemp("projects")
    made = Terminal(folder).perdure("new", "order-desk")
    assert made.code == 0, made.err
    assert "perdure dev agent.py:order_desk" in made.out
    return folder / "order-desk"


def test_it_has_what_a_project_has(project: Path) -> None:
    found = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert found == {
        *("agent.py", "tests/test_agent.py", "pyproject.toml"),
        *("README.md", "AGENTS.md", ".gitignore"),
    }
    assert ".perdure/" in (project / ".gitignore").read_text().splitlines()


def test_its_own_tests_pass(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS_MAX,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_it_runs_on_a_server_without_a_key_and_says_what_a_real_model_needs(
    project: Path,
) -> None:
    server = Terminal(project).start("dev", "agent.py:order_desk", "--port", "0")
    try:
        assert server.stdout is not None
        url, key = server.stdout.readline().split()[3], server.stdout.readline().split()[1]
        deadline = time.monotonic() + SECONDS_MAX
        while not Hosted(url).json("workers", "list", key=key):
            assert time.monotonic() < deadline, "no worker came"
        sent = Hosted(url).perdure("send", "order-desk", "Where is order 42?", "--wait", key=key)
        assert sent.code == 0, sent.err
        assert sent.out.startswith("Order 42 is on its way.")
    finally:
        server.terminate()
        _, said = server.communicate(timeout=SECONDS_MAX)
    assert "order-desk: its file plays the model. For a real one, set ANTHROPIC_API_KEY" in said
    [letter] = (project / "letters").iterdir()
    assert json.loads(letter.read_text())["order"] == "42"


def test_a_model_without_its_key_is_told_at_the_start(project: Path) -> None:
    server = Terminal(project).start(
        "dev", "agent.py:order_desk", "--port", "0", PERDURE_MODEL="anthropic:claude-sonnet-5"
    )
    try:
        assert server.stdout is not None
        server.stdout.readline()
    finally:
        server.terminate()
        _, said = server.communicate(timeout=SECONDS_MAX)
    assert "order-desk: set ANTHROPIC_API_KEY to ask anthropic:claude-sonnet-5" in said


@pytest.mark.parametrize("name", ["a", "z9" * (NAME_CHARS_MAX // 2)])
def test_the_code_is_tidy_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "tests").mkdir()
    for path, text in rendered(name).items():
        assert "{{" not in text
        (tmp_path / path).write_text(text)
    for check in (("format", "--check"), ("check", "--select=E,F,I,UP,B")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--isolated", "--no-cache", "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name", ["Order", "9x", "a--b", "a-", "../x", "class", "", "a b", "a" * (NAME_CHARS_MAX + 1)]
)
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    done = Terminal(tmp_path).perdure("new", "--", name)
    assert (done.code, "cannot be the name: expected" in done.err) == (2, True), done.err


@pytest.mark.parametrize("name", ["tool", "json", "agent", "perdure", "order-status"])
def test_a_name_that_the_files_use_is_refused(tmp_path: Path, name: str) -> None:
    done = Terminal(tmp_path).perdure("new", name)
    assert (done.code, "take another" in done.err) == (2, True), done.err
    assert not (tmp_path / name).exists()


def test_only_a_folder_that_is_empty_is_filled(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").touch()
    assert Terminal(tmp_path).perdure("new", "mine").code == 0
    (tmp_path / "mine" / "agent.py").write_text("kept")
    for name in ("mine", "file"):
        done = Terminal(tmp_path).perdure("new", name)
        assert (done.code, "is there already" in done.err) == (6, True), done.err
    assert (tmp_path / "mine" / "agent.py").read_text() == "kept"
