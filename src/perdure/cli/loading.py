"""FILE:AGENT on the command line: find the agent in a file or in a module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from perdure.bootstrap import Agent
from perdure.core.errors import InvalidInput
from perdure.policy.policy import Policy


def load_agent(reference: str) -> tuple[Agent, str]:
    """Return the agent that `FILE.py:NAME` or `module:NAME` names, and the reference made absolute.

    Without `:NAME` the file must have exactly one agent. Raises `InvalidInput`.
    """
    agent, _, source = load_team(reference)
    return agent, source


def load_team(reference: str) -> tuple[Agent, tuple[Agent, ...], str]:
    """Return an agent as `load_agent` does, and the others in its file, which it may launch."""
    place, colon, name = reference.rpartition(":")
    if not colon or name.endswith(".py"):
        place, name = reference, ""
    module, absolute = _module(place)
    agents = {key: value for key, value in vars(module).items() if isinstance(value, Agent)}
    listed = ", ".join(agents) or "none"
    if name:
        if name not in agents:
            raise InvalidInput(f"{place} has no agent {name!r}; its agents are: {listed}")
        return agents[name], _others(agents, name), f"{absolute}:{name}"
    if len(agents) != 1:
        raise InvalidInput(f"name one agent as {place}:AGENT; {place} has: {listed}")
    name = next(iter(agents))
    return agents[name], (), f"{absolute}:{name}"


def _others(agents: dict[str, Agent], name: str) -> tuple[Agent, ...]:
    by_name = {one.name: one for one in agents.values()}
    by_name.pop(agents[name].name)
    return tuple(by_name.values())


def load_policy(path: str) -> tuple[Policy, str]:
    """Return the policy in a file, TOML or (`.json`) JSON, and its path made absolute.

    Raises `InvalidInput`.
    """
    file = Path(path).absolute()
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"the policy {path} cannot be read: {error.strerror}") from None
    if file.suffix == ".json":
        return Policy.from_json(text, path), str(file)
    try:
        return Policy.from_toml(text.decode(), path), str(file)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: expected UTF-8: {error}") from None


def _module(place: str) -> tuple[ModuleType, str]:
    path = Path(place)
    if path.suffix != ".py" and not path.exists():
        sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(place), place
        except ModuleNotFoundError as error:
            raise InvalidInput(f"there is no file and no module {place!r}: {error}") from None
    path = path.resolve()
    if not path.is_file():
        raise InvalidInput(f"there is no file {place}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name = f"perdure_agent_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InvalidInput(
            f"{place} could not be loaded: {type(error).__name__}: {error}"
        ) from error
    return module, str(path)
