"""The import contracts of pyproject.toml hold, cover what exists, and fail when one is broken."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture import tidy

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "importlinter"
]
CONTRACTS = {contract["id"]: contract for contract in CONFIG["contracts"]}

# A module, an import planted in it, and the contract that has to break.
PLANTED = [
    ("core.session", "import time", "pure"),
    ("core.session", "import asyncio", "pure"),
    ("core.session", "from pathlib import Path", "pure"),
    ("core.session", "import perdure.ports.clock", "layers"),
    (
        "core.session",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import perdure.ports.clock",
        "layers",
    ),
    ("core.session", "import perdure.goals", "layers"),
    ("core.session", "import perdure", "layers"),
    ("core.events", "import perdure.core.session", "acyclic"),
    ("wire", "import perdure.ports.clock", "layers"),
    ("policy", "import perdure.goals", "layers"),
    ("ports.clock", "import perdure.runtime", "layers"),
    ("ports.clock", "import sqlite3", "drivers"),
    ("ports.clock", "import time", "promises"),
    ("runtime", "import perdure.adapters.stores.memory", "choose"),
    ("runtime", "import perdure.worker", "layers"),
    ("runtime", "import apsw", "drivers"),
    ("runtime", "import perdure.testing", "layers"),
    ("worker", "import perdure.runtime", "layers"),
    ("worker", "import pydantic_ai", "drivers"),
    ("adapters.stores.sqlite", "import perdure.adapters.stores.memory", "siblings"),
    ("adapters.models", "import perdure.adapters.stores.memory", "siblings"),
    ("adapters.models", "import perdure.runtime", "layers"),
    ("server", "import perdure.adapters.models", "choose"),
    ("client", "import perdure.server", "layers"),
    ("cli", "import perdure.adapters.models", "choose"),
    ("cli", "import perdure.worker", "face"),
    ("cli", "import perdure.testing", "layers"),
    ("bootstrap", "import perdure.cli", "layers"),
    ("utils", "", "layers"),
]

# Runs in a process of its own, where `perdure` is the skeleton. One line of JSON per case.
LINT = """
import contextlib, io, json, sys
from pathlib import Path
sys.path.insert(0, "src")
from importlinter.cli import lint_imports

for module, planted in json.load(sys.stdin):
    place = Path("src/perdure", *module.split("."))
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    before = path.read_text() if path.exists() else None
    path.write_text((before or "") + planted + "\\n")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        lint_imports(config_filename="pyproject.toml", no_cache=True)
    path.unlink() if before is None else path.write_text(before)
    print(json.dumps(said.getvalue()))
"""


def test_the_contracts_hold() -> None:
    """What `make check` runs; the report says which import breaks which contract."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [program, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_pure_package_is_under_the_pure_contract() -> None:
    """import-linter refuses to name a package that does not exist, so the list has to grow."""
    existing = {f"perdure.{name}" for name in tidy.PURE if (tidy.SRC / name).is_dir()}
    assert existing <= set(CONTRACTS["pure"]["source_modules"])


def test_every_adapter_is_under_the_contract_of_siblings() -> None:
    """Stores, catalogs and clusters are adapters; of the other folders the whole folder is one.

    What the adapters of one kind of server or file have in common is none: several stand on it.
    """
    adapters = tidy.SRC / "adapters"
    families = {"catalog", "cluster", "stores"}
    children = [adapters, *(adapters / family for family in families)]
    children = [child for folder in children for child in folder.iterdir()]
    existing = {
        ".".join(child.relative_to(tidy.SRC.parent).with_suffix("").parts)
        for child in children
        if (child.is_dir() or child.suffix == ".py")
        and child.name not in {*families, "__init__.py", "__pycache__"}
    }
    common = {f"perdure.adapters.{name}" for name in ("nats", "postgres", "redis", "sqlite")}
    assert existing - common == set(CONTRACTS["siblings"]["modules"])


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What import-linter says about each planted import, in a skeleton of the whole tree."""
    root = tmp_path_factory.mktemp("skeleton")
    (root / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    _plant_skeleton(root / "src" / "perdure")
    cases = [["core.session", ""], *([module, planted] for module, planted, _ in PLANTED)]
    done = subprocess.run(
        [sys.executable, "-c", LINT],
        cwd=root,
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _plant_skeleton(package: Path) -> None:
    """Make every module that a contract names, also those that the project has not got yet."""
    named = {
        layer.strip(" ()") for line in CONTRACTS["layers"]["layers"] for layer in line.split("|")
    }
    for contract in CONFIG["contracts"]:
        for key in ("source_modules", "modules", "protected_modules", "allowed_importers"):
            named |= {name.removeprefix("perdure.") for name in contract.get(key, ())}
    named |= {"core.session", "core.events", "ports.clock"}
    for name in sorted(named):
        folder = package.joinpath(*name.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        for above in (folder, *folder.parents):
            if above == package.parent:
                break
            (above / "__init__.py").touch()
    (package / "__init__.py").write_text("import perdure.bootstrap\n")
    (package / "core/session/__init__.py").write_text("import perdure.core.events\n")


def test_the_skeleton_without_a_plant_holds(reports: list[str]) -> None:
    """Else the cases below would prove nothing."""
    assert _broken(reports[0]) == set()


@pytest.mark.parametrize("number", range(len(PLANTED)))
def test_a_planted_import_breaks_its_contract(reports: list[str], number: int) -> None:
    """Each of the contracts is the one that notices at least one of them."""
    report = reports[number + 1]
    assert CONTRACTS[PLANTED[number][2]]["name"] in _broken(report), report


def test_every_contract_is_planted() -> None:
    """A contract that nothing can break might as well not be there."""
    assert {contract for _, _, contract in PLANTED} == set(CONTRACTS)


def _broken(report: str) -> set[str]:
    names = {contract["name"] for contract in CONFIG["contracts"]}
    found = {
        name for name in names if re.search(rf"^{re.escape(name)} BROKEN", report, re.MULTILINE)
    }
    assert found or f"{len(names)} kept, 0 broken" in report, report
    return found
