"""The image: small, pinned, of nobody's rights, with nothing secret in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from perdure.api.operations import OPERATIONS
from tests.deploy.files import (
    CONTAINERFILE,
    FULL_VERSION,
    READ,
    ROOT,
    SECRET,
    Command,
    Instruction,
    instructions,
)

TEXT = CONTAINERFILE.read_text("utf-8")
OF_PYTHON = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PATH"}
WANTED = {"HEALTHCHECK", "ENTRYPOINT", "CMD", "STOPSIGNAL", "EXPOSE", "USER"}
HASHED = ("--require-hashes", "--no-index")


def problems(text: str) -> list[str]:
    """Return what is wrong with an image."""
    found = instructions(text)
    final = found[max(at for at, each in enumerate(found) if each.name == "FROM") :]
    names = re.findall(r"(\w+)=", " ".join(one.text for one in found if one.name in ("ARG", "ENV")))
    installs = [
        part
        for one in found
        if one.name == "RUN"
        for part in one.text.split("&&")
        if re.search(r"\bpip\b.* install\b|\bpip install\b", part)
    ]
    return [
        *_unpinned(found),
        *(f"ADD fetches {one.text}: COPY takes files" for one in found if one.name == "ADD"),
        *(f"a secret in {name}" for name in names if SECRET.search(name)),
        *_runs_as_root(final),
        *(f"{name} is missing" for name in WANTED - {each.name for each in final}),
        *(f"without hashes:{each}" for each in installs if not any(h in each for h in HASHED)),
    ]


def _unpinned(found: list[Instruction]) -> list[str]:
    given = dict(each.text.split("=", 1) for each in found if each.name == "ARG")
    images = [each.text.split()[0] for each in found if each.name == "FROM"]
    images = [re.sub(r"\$\{(\w+)\}", lambda name: given[name[1]], each) for each in images]
    return [
        f"{image} is not pinned"
        for image in images
        if not FULL_VERSION.fullmatch(image) or not re.search(r":\d+\.\d+\.\d+", image)
    ]


def _runs_as_root(final: list[Instruction]) -> list[str]:
    users = [each.text for each in final if each.name == "USER"]
    if users and all(re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user) for user in users):
        return []
    return ["it runs as root, or as a name that Kubernetes cannot check"]


def test_the_image_is_as_it_must_be() -> None:
    assert problems(TEXT) == []


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("python:3.11.13-slim-bookworm", "python:3.11", "python:3.11 is not pinned"),
        ("python:3.11.13-slim-bookworm", "python", "python is not pinned"),
        ("USER 10001:10001", "USER root", "root"),
        ("USER 10001:10001", "USER perdure", "root"),
        ("COPY src src", "ADD https://example.invalid/x x", "ADD fetches"),
        ("HEALTHCHECK", "LABEL", "HEALTHCHECK is missing"),
        ("STOPSIGNAL SIGTERM", "", "STOPSIGNAL is missing"),
        ("PYTHONUNBUFFERED=1", "PERDURE_KEY=abc", "a secret in PERDURE_KEY"),
        ("--require-hashes -r deploy/build.lock", "hatchling", "without hashes"),
    ],
)
def test_a_planted_fault_is_found(was: str, becomes: str, said: str) -> None:
    assert was in TEXT
    assert any(said in problem for problem in problems(TEXT.replace(was, becomes)))


def final(name: str) -> str:
    """Return what the last instruction of this name says."""
    return [each.text for each in instructions(TEXT) if each.name == name][-1]


def test_what_it_starts_is_a_command_of_ours_at_the_port_that_it_names() -> None:
    assert json.loads(final("ENTRYPOINT")) == ["perdure"]
    arguments = tuple(json.loads(final("CMD")))
    given = Command("Containerfile", arguments, {}).parsed().params
    assert given["host"] == "0.0.0.0"
    assert str(given["port"]) == final("EXPOSE")


def test_its_health_is_asked_of_an_operation_without_a_key() -> None:
    [(port, path)] = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", final("HEALTHCHECK"))
    assert port == final("EXPOSE")
    assert path in {one.path for one in OPERATIONS if one.scope is None}


def test_every_variable_that_it_sets_is_known() -> None:
    names = set(re.findall(r"(\w+)=", final("ENV")))
    assert names - OF_PYTHON <= READ


@pytest.mark.parametrize("instruction", [i for i in instructions(TEXT) if i.name == "COPY"])
def test_what_it_copies_is_there_and_is_let_in(instruction: Instruction) -> None:
    """By the list beside it, which keeps out everything that it does not name."""
    if instruction.text.startswith("--from"):
        return
    listed = (ROOT / "deploy" / "Containerfile.dockerignore").read_text("utf-8").splitlines()
    assert "*" in listed
    for source in instruction.text.split()[:-1]:
        assert (ROOT / source).exists()
        assert f"!{source}" in listed


@pytest.mark.parametrize("name", ["image", "build"])
def test_the_locks_of_the_image_are_part_of_the_lock(name: str) -> None:
    """So that what is tested is what is shipped, hash by hash."""

    def pinned(path: Path) -> set[str]:
        text = re.sub(r"\n\s+#.*", "", path.read_text("utf-8"))
        return set(re.split(r"\n(?=\S)", text.strip()))

    of_image = pinned(ROOT / "deploy" / f"{name}.lock")
    assert len(of_image) > 3
    assert of_image - pinned(ROOT / "requirements.lock") == set(), "run make lock"


def test_the_image_has_every_extra() -> None:
    """But the one that proves: a policy is proved before it is deployed, and Z3 is large."""
    lock = (ROOT / "deploy" / "image.lock").read_text("utf-8")
    for package in ("asyncpg", "cedarpy", "redis", "nats-py", "pydantic-ai-slim", "uvicorn"):
        assert f"\n{package}==" in lock
    assert "perdure[models,nats,policy,postgres,redis]" in TEXT
    assert not re.search(r"^(pytest|hatchling|mypy|z3-solver)==", lock, re.MULTILINE)
