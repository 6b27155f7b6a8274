"""`perdure new`: a project that runs, with tests."""

from __future__ import annotations

import importlib.metadata
import keyword
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import click

from perdure.cli.common import blocking_body
from perdure.core.errors import InvalidInput, Refused

TEMPLATES = {
    "agent.py": "agent.py.txt",
    "tests/test_agent.py": "tests/test_agent.py.txt",
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "AGENTS.md": "AGENTS.md.txt",
    ".gitignore": "gitignore.txt",
}
NAME_CHARS_MAX = 40
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")

NEXT = """{name}/ is there. Try it; it needs no key:

  cd {name}
  perdure run agent.py "Where is order 42?"
  python -m pytest
  perdure dev agent.py:{variable}

README.md says how to give it a real model."""


@click.command(epilog="Example: perdure new order-desk")
@click.argument("name")
@blocking_body
def new(name: str) -> None:
    """Make a project that runs, in a folder NAME.

    It has an agent, tests, and what somebody who works on it has to know. It needs no key.
    """
    files = rendered(name)
    folder = Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{name} is there already, and not an empty folder", "exists")
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    click.echo(NEXT.format(name=name, variable=variable_of(name)))


def rendered(name: str) -> Mapping[str, str]:
    """Return the files of a project: path -> text.

    Raises `InvalidInput` for a name that folder, package, agent and variable could not all have.
    """
    variable = variable_of(name)
    folder = resources.files("perdure.cli") / "scaffold"
    texts = {path: (folder / file).read_text("utf-8") for path, file in TEMPLATES.items()}
    codes = [text.replace("{{variable}}", "_") for path, text in texts.items() if ".py" in path]
    if any(variable in compile(code, "scaffold", "exec").co_names for code in codes):
        raise InvalidInput(f"{name!r} is the name of something else in these files; take another")
    values = {
        "{{name}}": name,
        "{{variable}}": variable,
        "{{version}}": importlib.metadata.version("perdure"),
    }
    return {
        path: re.sub("{{name}}|{{variable}}|{{version}}", lambda found: values[found[0]], text)
        for path, text in texts.items()
    }


def variable_of(name: str) -> str:
    """Return the Python name of an agent with this name."""
    variable = name.replace("-", "_")
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX or keyword.iskeyword(variable):
        raise InvalidInput(
            f"{name!r} cannot be the name: expected up to {NAME_CHARS_MAX} small letters, digits "
            "and single hyphens, beginning with a letter, and no keyword of Python, as order-desk"
        )
    return variable
