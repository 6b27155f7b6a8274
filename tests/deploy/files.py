"""The files under deploy/, as tests see them: YAML, units, a Containerfile, and their commands.

Nothing here starts a container: that takes a runtime. What is checked is what can be known without
one; what the commands do is run as plain processes (tests/deploy/test_three_nodes.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import yaml

from perdure.cli.main import main

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
COMPOSE: Final = sorted((DEPLOY / "compose").glob("*.yaml"))
MANIFESTS: Final = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS: Final = sorted((DEPLOY / "systemd").glob("*.service"))
CONTAINERFILE: Final = DEPLOY / "Containerfile"
OURS: Final = ("perdure", "perdure-agents")
"""Images whose entry point is `perdure`."""

MERGE: Final = "tag:yaml.org,2002:merge"
SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PEPPER", re.IGNORECASE)
"""The names of what must never stand in a file."""

READ: Final = frozenset(
    name
    for folder in ("src", "examples", "deploy")
    for path in (ROOT / folder).rglob("*.py")
    for name in re.findall(r'"(PERDURE_[A-Z_]+|[A-Z]+_API_KEY)"', path.read_text("utf-8"))
)
"""The variables that the code reads, or an example."""

FULL_VERSION: Final = re.compile(r"[\w./-]+:\d+\.\d+(\.\d+)?(-[\w.-]+)?(@sha256:[0-9a-f]{64})?")


class _Strict(yaml.SafeLoader):
    """Refuses a key that comes twice; others keep the last one and say nothing."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    own = [loader.construct_object(key) for key, _ in node.value if key.tag != MERGE]
    twice = {str(key) for key in own if own.count(key) > 1}
    if twice:
        raise yaml.constructor.ConstructorError(
            None, None, f"these keys come twice: {sorted(twice)}", node.start_mark
        )
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def documents(text: str) -> list[Any]:
    """Return the documents of a YAML text. Raises `yaml.YAMLError`, for a repeated key too."""
    return [found for found in yaml.load_all(text, _Strict) if found is not None]


class Command(NamedTuple):
    """A command line of ours and what is in its environment."""

    where: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str | None]

    def parsed(self) -> click.Context:
        """Parse it as `perdure` would. Raises `click.UsageError`."""
        command: click.Command = main
        arguments = list(self.arguments)
        path = "perdure"
        while isinstance(command, click.Group):
            name = arguments.pop(0) if arguments else ""
            if name not in command.commands:
                raise click.UsageError(f"{path} has no command {name!r}")
            command, path = command.commands[name], f"{path} {name}"
        return command.make_context(path, arguments)

    @property
    def is_of_compose(self) -> bool:
        """Whether it stands in a compose file."""
        return self.where.startswith("compose/")


def image_name(image: str) -> str:
    """Return an image's name without its tag."""
    return image.partition("@")[0].partition(":")[0]


def compose_commands(where: str, document: Mapping[str, Any]) -> Iterator[Command]:
    """Give the commands of ours in a compose file, with their environment."""
    for name, service in document["services"].items():
        if image_name(service.get("image", "")) in OURS:
            environment = service.get("environment", {})
            yield Command(f"{where}: {name}", tuple(service["command"]), environment)


def containers(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the containers of a manifest; none, if it makes no pods."""
    template = document.get("spec", {}).get("template")
    found: list[dict[str, Any]] = template["spec"]["containers"] if template else []
    return found


def manifest_commands(where: str, document: Mapping[str, Any]) -> Iterator[Command]:
    """Give the commands of ours in a manifest, with what is in their environment."""
    for container in containers(document):
        environment = {one["name"]: one.get("value") for one in container.get("env", ())}
        arguments = tuple(re.sub(r"\$\((\w+)\)", r"\1", each) for each in container["args"])
        yield Command(f"{where}: {container['name']}", arguments, environment)


class Unit(NamedTuple):
    """A systemd unit: (section, name) -> the values that it is given, in order."""

    path: Path
    settings: Mapping[tuple[str, str], list[str]]

    def one(self, name: str, section: str = "Service") -> str:
        """Return the values of a setting; empty if there is none."""
        return " ".join(self.settings.get((section, name), [""]))


def unit(path: Path, text: str | None = None) -> Unit:
    """Read a unit."""
    settings: dict[tuple[str, str], list[str]] = {}
    section = ""
    for line in (path.read_text("utf-8") if text is None else text).splitlines():
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif line.strip() and not line.startswith(("#", ";")):
            name, equals, value = line.partition("=")
            if not equals or not section:
                raise ValueError(f"{path.name}: {line!r} is no setting of a section")
            settings.setdefault((section, name.strip()), []).append(value.strip())
    return Unit(path, settings)


def unit_command(found: Unit) -> Command:
    """Return the command that a unit starts; specifiers stand for names."""
    program, *arguments = shlex.split(found.one("ExecStart").replace("%", ""))
    assert program == "/opt/perdure/bin/perdure", program
    given = dict(each.split("=", 1) for each in shlex.split(found.one("Environment")))
    return Command(f"systemd/{found.path.name}", tuple(arguments), given)


class Instruction(NamedTuple):
    """A line of a Containerfile, with its continuations."""

    name: str
    text: str


def instructions(text: str) -> list[Instruction]:
    """Read a Containerfile."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    whole = re.sub(r"\\\n", "", "\n".join(lines))
    pairs = (line.strip().partition(" ") for line in whole.splitlines() if line.strip())
    return [Instruction(name.upper(), " ".join(rest.split())) for name, _, rest in pairs]


def every_command() -> list[Command]:
    """Return every command line of ours under deploy/."""
    found: list[Command] = []
    for path in COMPOSE:
        [document] = documents(path.read_text("utf-8"))
        found += compose_commands(f"compose/{path.name}", document)
    for path in MANIFESTS:
        for document in documents(path.read_text("utf-8")):
            found += manifest_commands(f"kubernetes/{path.name}", document)
    return found + [unit_command(unit(path)) for path in UNITS]
