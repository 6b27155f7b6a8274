"""What is committed names no package registry and no folder of the machine it was written on.

A registry's host in a committed file would decide for the user where packages come from; see
docs/decisions/0001-lock-without-hosts.md.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]


def _host(*parts: str) -> str:
    """Put a name together here, so that this file does not hold it either."""
    return ".".join(parts)


def _path(*parts: str) -> str:
    return "".join(f"/{part}" for part in parts)


HOSTS: Final = (
    _host("pypi", "org"),
    _host("pypi", "python", "org"),
    _host("files", "pythonhosted", "org"),
    _host("registry", "npmjs", "org"),
    _host("registry", "yarnpkg", "com"),
    _host("deb", "debian", "org"),
    _host("security", "debian", "org"),
    _host("archive", "ubuntu", "com"),
    _host("proxy", "golang", "org"),
    _host("crates", "io"),
    _host("ghcr", "io"),
    _host("docker", "io"),
    _host("conda", "anaconda", "org"),
)
# A home, or a folder of the workplace; not the middle of a longer path, URL or pattern.
FOLDERS: Final = re.compile(
    r"(?<![\w.*/)}>-])/(?:home/[\w.-]+|Users/[\w.-]+|root|work|opt/pypi[\w-]*)(?:/[\w.-]|$)",
    re.MULTILINE,
)
LOCAL_INDEX: Final = re.compile(r"(?:--(?:extra-)?index-url|--find-links|file://)[ =]*/?\S")


def foreign(text: str, *, is_lock: bool = False) -> list[str]:
    """Return what in a text belongs to one machine or one registry."""
    lowered = text.lower()
    found = [host for host in HOSTS if re.search(rf"(?<![\w-]){re.escape(host)}(?!\w)", lowered)]
    found += [match.group() for match in FOLDERS.finditer(text)]
    if is_lock:
        found += [match.group() for match in LOCAL_INDEX.finditer(text)]
        found += re.findall(r"\S*://\S*", text)
    return found


def committed() -> list[Path]:
    """Return what git tracks, and what it would add: neither is allowed to name a machine."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_nothing_committed_names_a_registry_or_a_folder_of_a_machine() -> None:
    """Binary files are read as Latin-1: a host in them is found as well."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: there is nothing to list")
    bad = {
        str(path.relative_to(ROOT)): found
        for path in committed()
        if (found := foreign(path.read_text("latin-1"), is_lock=path.suffix == ".lock"))
    }
    assert bad == {}


def test_the_lock_pins_everything_by_hash() -> None:
    """Every requirement is an exact version, followed by at least one SHA-256."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[A-Za-z0-9])", lock.strip())
    loose = [
        block.splitlines()[0]
        for block in blocks
        if not re.match(r"[A-Za-z0-9._-]+==\S", block) or "--hash=sha256:" not in block
    ]
    assert loose == []
    assert len(blocks) > 20


@pytest.mark.parametrize(
    "planted",
    [
        *(f"url = https://{host}/simple" for host in HOSTS),
        f"see {HOSTS[0].upper()}.",
        _path("home", "ada", "perdure"),
        "cd " + _path("work", "main"),
        "'" + _path("root", ".cache") + "'",
        _path("Users", "ada", "src"),
        _path("opt", "pypi", "simple"),
    ],
)
def test_a_planted_name_is_found(planted: str) -> None:
    """In prose, in a URL, in quotes."""
    assert foreign(planted)


@pytest.mark.parametrize(
    "planted",
    [
        "--extra-index-url " + "https://" + "example.invalid/simple",
        "--find-links wheels",
        "apsw @ file:" + "///tmp/apsw.whl",
    ],
)
def test_a_planted_source_is_found_in_the_lock(planted: str) -> None:
    """A lock says what, never from where."""
    assert foreign(planted, is_lock=True)
    assert not foreign("apsw==3.54.1.0 \\\n    --hash=sha256:00\n    # via perdure", is_lock=True)


@pytest.mark.parametrize(
    "text",
    ["https://example.com/work/item", "src/root/x", "/v1/work/7", "${HOME}/x", "tests/home/a"],
)
def test_a_near_miss_is_left_alone(text: str) -> None:
    """Paths of an API, of this repository, of somebody's variable."""
    assert not foreign(text)
