"""The pages of docs/operating: their commands are ones that there are, their files too."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from perdure.cli.main import main
from tests.deploy.files import READ, Command
from tests.docs.pages import ROOT, blocks, prose

OPERATING = sorted((ROOT / "docs" / "operating").glob("*.md"))
EXAMPLES = [*OPERATING, *sorted((ROOT / "deploy" / "compose").glob("*.yaml"))]
PARTS = re.compile(r"\s(?:\||&&|;)\s|\s&$")


def command_lines(text: str) -> Iterator[str]:
    """Give the commands of a shell text, one by one."""
    for line in text.replace("\\\n", " ").splitlines():
        yield from PARTS.split(line)


def ours(line: str) -> tuple[str, ...] | None:
    """Return the arguments of a command of ours; None for another one."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return tuple(words[1:]) if words[:1] == ["perdure"] else None


def in_page(page: Path) -> list[tuple[str, ...]]:
    """Return the commands of ours that a page shows in blocks."""
    lines = [
        line
        for block in blocks(page)
        if block.language == "sh"
        for line in command_lines(block.text)
    ]
    return [found for line in lines if (found := ours(line)) is not None]


@pytest.mark.parametrize("page", OPERATING, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one_of_ours(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that it names need not be here."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)
    for arguments in in_page(page):
        Command(page.name, arguments, {}).parsed()


@pytest.mark.parametrize("page", OPERATING, ids=lambda page: page.name)
def test_every_command_in_a_sentence_is_one_of_ours(page: Path) -> None:
    for said in re.findall(r"`perdure ([^`]+)`", prose(page.read_text("utf-8"))):
        command: click.Command = main
        for word in said.split():
            if isinstance(command, click.Group):
                assert word in command.commands, f"perdure {said}"
                command = command.commands[word]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_every_variable_and_file_of_ours_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    assert set(re.findall(r"\bPERDURE_[A-Z_]+", text)) - {*READ} == set()
    for path in re.findall(r"(?<![\w/])(deploy/[\w./-]+\w)", text):
        assert (ROOT / path).exists(), path


def test_commands_are_found_in_a_shell_text() -> None:
    text = "A=1 perdure server \\\n  --port 1 | tee log\nls # perdure x\nperdure dev &\n"
    found = [ours(line) for line in command_lines(text)]
    assert [one for one in found if one is not None] == [("server", "--port", "1"), ("dev",)]
    assert sum(len(in_page(page)) for page in OPERATING) >= 4
