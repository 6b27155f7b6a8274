"""The compose files: known fields, pinned images, no secrets, and every name leads somewhere."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.composed import problems
from tests.deploy.files import COMPOSE, documents

VERSION = importlib.metadata.version("perdure")
ONE_NODE = next(path for path in COMPOSE if path.name == "one-node.yaml")


def read(path: Path) -> Any:
    """Return what a compose file says."""
    [document] = documents(path.read_text("utf-8"))
    return document


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_a_compose_file_is_as_it_must_be(path: Path) -> None:
    assert list(problems(path, read(path), VERSION)) == []


def change(*keys: str, to: Any) -> Callable[[Any], None]:
    """Return what sets a value somewhere in a document, or takes it away."""

    def apply(document: Any) -> None:
        *above, last = keys
        for key in above:
            document = document.setdefault(key, {})
        if to is None:
            del document[last]
        else:
            document[last] = to

    return apply


SERVER, WORKER = ("services", "server"), ("services", "worker")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (change("version", to="3"), "version: not a field"),
        (change(*SERVER, "comand", to=["x"]), "comand: not a field"),
        (change(*SERVER, "command", to="server"), "wrong type"),
        (change(*SERVER, "command", to=["server", "--port", 4000]), "quote it"),
        (change(*SERVER, "image", to="perdure:latest"), "not pinned"),
        (change(*SERVER, "image", to="perdure"), "not pinned"),
        (change(*SERVER, "image", to="perdure:9.9.9"), "not the version"),
        (change(*SERVER, "build", "dockerfile", to="Dockerfile"), "no such file"),
        (change(*SERVER, "environment", "PERDURE_BOTSTRAP_KEY", to="${A:?a}"), "read by nobody"),
        (change(*SERVER, "environment", "PERDURE_BOOTSTRAP_KEY", to="abc"), "a secret in"),
        (change(*SERVER, "environment", "PERDURE_FOLDER", to="${A}"), "may be empty"),
        (change(*SERVER, "environment", "PERDURE_STORE", to="redis://:pw@server:4000"), "password"),
        (change(*WORKER, "environment", "PERDURE_URL", to="http://node:4000"), "no service 'node'"),
        (change(*WORKER, "environment", "PERDURE_URL", to="http://server:4001"), "does not listen"),
        (change(*SERVER, "volumes", to=["data:/var/lib/perdure"]), "not among the volumes"),
        (change(*WORKER, "volumes", to=["../../agents:/agents:ro"]), "there is no ../../agents"),
        (change(*WORKER, "volumes", to=["../../examples:/agents"]), "add :ro"),
        (change(*SERVER, "ports", to=["4000:4000"]), "no TLS"),
        (change(*SERVER, "depends_on", "db", to={"condition": "service_healthy"}), "no service"),
        (change(*WORKER, "healthcheck", to={}), "disable it"),
        (change(*SERVER, "healthcheck", "test", to=["CMD", "x http://a:4000/x"]), "nothing is at"),
        (change(*SERVER, "restart", to=None), "must come back"),
        (change(*SERVER, "stop_grace_period", to="10s"), "it would be killed"),
        (change(*SERVER, "cap_drop", to=["NET_RAW"]), "needs no capability"),
        (change(*SERVER, "user", to="root"), "needs no capability"),
        (change(*SERVER, "read_only", to=None), "writes to its volume"),
        (change(*SERVER, "security_opt", to=None), "no-new-privileges"),
        (change(*SERVER, "init", to=None), "reaped by nobody"),
        (change("volumes", "more", to={}), "nobody uses"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_planted_mistake_is_found(mistake: Callable[[Any], None], said: str) -> None:
    document = deepcopy(read(ONE_NODE))
    mistake(document)
    assert any(said in problem for problem in problems(ONE_NODE, document, VERSION))


def test_a_key_that_comes_twice_is_found() -> None:
    """YAML's readers keep the last one, and say nothing."""
    with pytest.raises(yaml.YAMLError, match="come twice"):
        documents("a: 1\nb: 2\na: 3\n")
    assert documents("x: &x {a: 1, b: 1}\ny: {<<: *x, a: 2}\n")[0]["y"] == {"a": 2, "b": 1}
