"""Everything that has a name is in the reference; `make docs` writes most of it."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec
import pytest

import perdure
from perdure import client, testing
from perdure.cli import common, progress
from perdure.cli.main import main
from perdure.core import limits
from perdure.core.events import EVENT_TYPES
from perdure.core.retry import POLICY
from perdure.ports import faults
from perdure.runtime.settings import NodeSettings
from scripts import docs
from tests.docs.pages import ROOT

REFERENCE = ROOT / "docs" / "reference"
SOURCES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))]


def page(name: str) -> str:
    """Return a page of the reference."""
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


def commands(path: str, command: click.Command) -> list[str]:
    """Return the paths of a command and of all below it."""
    found = [path]
    if isinstance(command, click.Group):
        for name, inside in command.commands.items():
            found += commands(f"{path} {name}", inside)
    return found


@pytest.mark.parametrize(
    "path", [path for path in docs.pages() if path.is_relative_to(ROOT)], ids=lambda path: path.name
)
def test_a_generated_page_is_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == docs.pages()[path], "run make docs"


def test_every_public_name_is_documented() -> None:
    headings = set(re.findall(r"^### `(\w+)`$", page("api"), re.MULTILINE))
    assert {*perdure.__all__, *testing.__all__} - headings == set()
    for name in (*perdure.__all__, *testing.__all__):
        text = page("api").partition(f"### `{name}`\n")[2].partition("\n##")[0]
        assert len(text.split()) > 5, f"{name} has a heading and no text"


def test_every_name_of_the_client_is_documented() -> None:
    headings = set(re.findall(r"^### `(\w+)`$", page("client"), re.MULTILINE))
    assert set(client.__all__) - headings == set()


def test_every_command_is_documented() -> None:
    headings = set(re.findall(r"^## `([\w -]+)`$", page("cli"), re.MULTILINE))
    assert headings == set(commands("perdure", main))


def test_every_command_has_an_example() -> None:
    for name in commands("perdure", main):
        command: click.Command = main
        for part in name.split()[1:]:
            assert isinstance(command, click.Group)
            command = command.commands[part]
        if not isinstance(command, click.Group):
            assert (command.epilog or "").startswith(f"Example: {name}"), name


def test_every_exit_code_is_documented() -> None:
    shown = {int(code) for code in re.findall(r"^\| `(\d+)` \|", page("cli"), re.MULTILINE)}
    used = {code for _, code in common.EXIT_CODES}
    used |= {common.OTHER_ERROR, common.INTERRUPTED, progress.PARKED, *_exits_of_runs()}
    assert shown == used


def _exits_of_runs() -> set[int]:
    return set(progress.TERMINAL_EXITS.values())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("events", set(EVENT_TYPES)),
        ("faults", set(faults.SITES)),
        ("limits", {name for name in vars(limits) if name.isupper()}),
        ("limits", {code for _, code in POLICY}),
        ("settings", {field.name for field in msgspec.structs.fields(NodeSettings)}),
    ],
)
def test_every_name_is_documented(name: str, wanted: set[str]) -> None:
    assert {each for each in wanted if f"`{each}`" not in page(name)} == set()


def test_every_emitted_fact_is_documented() -> None:
    """The table in ports/telemetry.py is an API."""
    emitted = {name for text in SOURCES for name in re.findall(r'emit\(\s*"([\w.]+)"', text)}
    shown = set(re.findall(r"^\| `([\w.]+)` \|", page("telemetry"), re.MULTILINE))
    assert emitted
    assert emitted - shown == set()


def test_every_environment_variable_is_documented() -> None:
    named = {name for text in SOURCES for name in re.findall(r'"(PERDURE_[A-Z_]+)"', text)}
    assert named
    assert {name for name in named if f"`{name}`" not in page("settings")} == set()


def test_every_code_of_a_failed_model_call_is_explained() -> None:
    """In the page for when things go wrong."""
    page = (ROOT / "docs" / "howto" / "when-things-go-wrong.md").read_text(encoding="utf-8")
    codes = {code for _, code in POLICY} - {"worker_disconnected"}
    assert {code for code in codes if f"`{code}`" not in page} == set()


def test_every_rule_that_denies_a_call_is_explained() -> None:
    page = (ROOT / "docs" / "howto" / "when-things-go-wrong.md").read_text(encoding="utf-8")
    core = ROOT / "src" / "perdure" / "core"
    said = "".join((core / name).read_text(encoding="utf-8") for name in ("plan.py", "children.py"))
    rules = set(re.findall(r'return "(\w+)", (?:f"|"|text|wrong)', said)) - {
        "steps_exceeded",
        "tokens_exceeded",
    }
    assert len(rules) >= 5
    assert {rule for rule in rules if f"`{rule}`" not in page} == set()
