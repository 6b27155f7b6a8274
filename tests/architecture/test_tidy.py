"""The source is tidy, and every rule that says so is seen to fail on a planted violation."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import msgspec
import pytest

from tests.architecture import tidy
from tests.architecture.tidy import package_problems, problems

MODULES = tidy.modules()


@pytest.mark.parametrize("path", MODULES)
def test_a_source_file_is_tidy(path: str) -> None:
    """One case per file, so that the report names each that is not."""
    found = problems(path, MODULES[path])
    assert not found, "\n".join(["", *found])


def test_the_median_file_is_small() -> None:
    """Small files are not the aim; few long ones are."""
    sizes = {path: len(text.splitlines()) for path, text in MODULES.items()}
    assert package_problems(sizes) == []


def test_every_folder_is_a_package() -> None:
    """import-linter does not see into a folder without __init__.py, so nothing in it is checked."""
    folders = {path.rpartition("/")[0] for path in MODULES}
    assert [f for f in folders if f"{f}/__init__.py".lstrip("/") not in MODULES] == []


def test_every_struct_of_the_pure_packages_is_frozen() -> None:
    """Also those that inherit from a struct of another module, which the pass cannot see."""
    thawed = [
        f"{module.__name__}.{name}"
        for module in _pure_modules()
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value is not msgspec.Struct
        and not value.__struct_config__.frozen
    ]
    assert thawed == []


def _pure_modules() -> list[ModuleType]:
    found = []
    for name in sorted(tidy.PURE):
        if not (tidy.SRC / name / "__init__.py").exists():
            continue
        package = importlib.import_module(f"perdure.{name}")
        found.append(package)
        inside = pkgutil.walk_packages(package.__path__, f"perdure.{name}.")
        found.extend(importlib.import_module(info.name) for info in inside)
    return found


DOC = '"""What it is for."""\n'
COMMIT = "the outcome of a commit is never ignored"

# where, what is planted, what the message says
PLANTED = [
    ("core/a.py", "x = 1\n", "no docstring"),
    ("core/a.py", DOC + "x = 1\n" * 400, "401 lines, more than 400"),
    ("runtime/a.py", DOC + "x = 1\n" * 600, "601 lines, more than 600"),
    ("runtime/a.py", DOC + f"x = '{'y' * 100}'\n", "106 columns"),
    ("runtime/a.py", DOC + "def f():\n" + "    g()\n" * 70, "f has 71 lines"),
    ("runtime/a.py", DOC + "async def f():\n" + "    g()\n" * 70, "f has 71 lines"),
    (
        "ports/a.py",
        DOC
        + "from typing import Protocol\nclass Port(Protocol):\n"
        + "".join(f"    def m{n}(self):\n        'Doc.'\n" for n in range(11)),
        "Port has 11 methods",
    ),
    (
        "ports/a.py",
        DOC + "import typing\nclass Port(typing.Protocol):\n    async def m(self): ...\n",
        "Port.m: say what it promises",
    ),
    # time, chance, the world
    ("core/a.py", DOC + "from datetime import datetime\nx = datetime.now()\n", "ports.clock"),
    ("core/a.py", DOC + "import datetime as d\nx = d.datetime.utcnow()\n", "ports.clock"),
    ("ports/a.py", DOC + "from datetime import date\nx = date.today()\n", "ports.clock"),
    ("runtime/a.py", DOC + "import time\nx = time.time()\n", "ports.clock"),
    ("runtime/a.py", DOC + "from time import monotonic as m\nx = m()\n", "ports.clock"),
    ("runtime/a.py", DOC + "import time\ndef f(clock=time.time): ...\n", "ports.clock"),
    ("runtime/a.py", DOC + "from uuid import uuid4\nx = uuid4()\n", "ports.clock"),
    ("runtime/a.py", DOC + "import random\nx = random.random()\n", "ports.clock"),
    ("runtime/a.py", DOC + "import random\nx = random.Random()\n", "ports.clock"),
    ("runtime/a.py", DOC + "import secrets\nx = secrets.token_hex()\n", "ports.clock"),
    ("bootstrap.py", DOC + "import os\nx = os.urandom(8)\n", "ports.clock"),
    ("runtime/a.py", DOC + "import asyncio\nx = asyncio.sleep(1)\n", "ports.clock"),
    ("worker/a.py", DOC + "from asyncio import sleep\nx = sleep(1)\n", "ports.clock"),
    ("worker/a.py", DOC + "x = open('f')\n", "behind a port"),
    ("server/a.py", DOC + "print('hello')\n", "ports.telemetry"),
    # commits
    ("runtime/a.py", DOC + "store.commit(step)\n", COMMIT),
    ("runtime/a.py", DOC + "store.commit(step, None)\n", COMMIT),
    ("runtime/a.py", DOC + "self._store.commit(step, done=lambda error: None)\n", COMMIT),
    # the pure packages
    ("core/a.py", DOC + "async def f(): ...\n", "wait for nothing"),
    ("wire/a.py", DOC + "async def f():\n    await g()\n", "wait for nothing"),
    ("api/a.py", DOC + "import msgspec\nclass A(msgspec.Struct): ...\n", "frozen=True"),
    ("core/a.py", DOC + "from msgspec import Struct\nclass A(Struct): ...\n", "frozen=True"),
    ("core/a.py", DOC + "class A(B, frozen=False): ...\n", "frozen=True"),
    (
        "policy/a.py",
        DOC + "from dataclasses import dataclass\n@dataclass\nclass A: ...\n",
        "frozen=True",
    ),
    (
        "core/a.py",
        DOC + "import dataclasses\n@dataclasses.dataclass(slots=True)\nclass A: ...\n",
        "frozen=True",
    ),
    ("core/a.py", DOC + "def f(x=[]): ...\n", "mutable default"),
    ("policy/a.py", DOC + "def f(*, x={}): ...\n", "mutable default"),
    (
        "core/a.py",
        DOC + "from collections import deque\ndef f(x=deque()): ...\n",
        "mutable default",
    ),
    ("core/a.py", DOC + "import os\n", "core does not import os"),
    ("core/a.py", DOC + "from zoneinfo import ZoneInfo\n", "core does not import zoneinfo"),
    # what nobody does
    ("adapters/a.py", DOC + "import pickle\n", "use msgspec"),
    ("testing/a.py", DOC + "from marshal import loads\n", "use msgspec"),
    ("cli/a.py", DOC + "import yaml\nx = yaml.load(text)\n", "yaml.safe_load"),
    ("cli/a.py", DOC + "x = eval(text)\n", "text is never run"),
    ("cli/a.py", DOC + "exec(text)\n", "text is never run"),
    ("cli/a.py", DOC + "# TODO: later\n", "TODO #123"),
    ("cli/a.py", DOC + "# FIXME #12\n", "mend it now"),
    ("cli/a.py", DOC + "try:\n    f()\nexcept:\n    g()\n", "bare except"),
    ("cli/a.py", DOC + "try:\n    f()\nexcept Exception:\n    pass\n", "swallowed"),
    (
        "cli/a.py",
        DOC + "import contextlib\nwith contextlib.suppress(Exception):\n    f()\n",
        "name the one that is expected",
    ),
]

# The near misses: what the rules must leave alone.
TIDY = [
    ("core/a.py", DOC + "x = 1\n" * 399),
    ("runtime/a.py", DOC + "x = 1\n" * 599),
    ("runtime/a.py", DOC + "def f():\n" + "    g()\n" * 69),
    ("runtime/a.py", DOC + "clock.sleep(1)\nself.clock.now_ms()\n"),
    ("runtime/a.py", DOC + "import asyncio\nx = asyncio.sleep(0)\n"),
    ("runtime/a.py", DOC + "import random\ndef f(chance: random.Random): ...\n"),
    ("core/a.py", DOC + "from datetime import datetime\ndef f(at: datetime): ...\n"),
    ("adapters/clock.py", DOC + "import time\nx = time.time()\n"),
    ("cli/a.py", DOC + "print('hello')\n"),
    ("worker/a.py", DOC + "import time\nx = time.monotonic()\n"),
    ("runtime/a.py", DOC + "store.open()\n"),
    ("runtime/a.py", DOC + "store.commit(step, self._committed)\n"),
    ("runtime/a.py", DOC + "store.commit(step, lambda error: settle(step, error))\n"),
    ("runtime/a.py", DOC + "store.commit(*handed)\n"),
    ("runtime/a.py", DOC + "async def f():\n    await g()\n"),
    ("runtime/a.py", DOC + "from dataclasses import dataclass\n@dataclass\nclass A: ...\n"),
    ("core/a.py", DOC + "import msgspec\nclass A(msgspec.Struct, frozen=True): ...\n"),
    ("core/a.py", DOC + "def f(x=(), y=None, z=0): ...\n"),
    ("cli/a.py", DOC + "# TODO #12: later\n"),
    ("cli/a.py", DOC + "try:\n    f()\nexcept KeyError:\n    pass\n"),
    ("ports/a.py", DOC + "class NotAPort:\n    def m(self): ...\n"),
]


@pytest.mark.parametrize(("path", "text", "message"), PLANTED)
def test_a_planted_violation_is_found(path: str, text: str, message: str) -> None:
    """And what is said about it is what the table expects."""
    assert any(message in problem for problem in problems(path, text))


@pytest.mark.parametrize(("path", "text"), TIDY)
def test_a_near_miss_is_left_alone(path: str, text: str) -> None:
    """A rule that cries wolf is switched off before long."""
    assert problems(path, text) == []


def test_a_large_median_is_found() -> None:
    """Two long files of three."""
    assert package_problems({"a.py": 10, "b.py": 201, "c.py": 300})
    assert not package_problems({"a.py": 10, "b.py": 200, "c.py": 300})


def test_every_rule_is_planted() -> None:
    """A rule that no planted case sets off might as well not be there."""
    found = {
        rule.__name__
        for path, text, _ in PLANTED
        for rule in tidy.RULES
        if any(rule(tidy.read(path, text)))
    }
    assert found == {rule.__name__ for rule in tidy.RULES}
