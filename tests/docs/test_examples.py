"""The examples do what they say: the librarian stays in its directory, a refund is paid once."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from perdure import ToolContext
from tests.docs.pages import ROOT, finish, start

EXAMPLES = ROOT / "examples"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A directory with a secret next to it, and a link to that."""
    root = tmp_path / "library"
    (root / "sub").mkdir(parents=True)
    (root / "tea.md").write_text("About tea.\nTea is a drink.\n", encoding="utf-8")
    (root / "sub" / "long.txt").write_text("a line\n" * 400, encoding="utf-8")
    (root / "sub" / "image.png").write_bytes(b"tea\0\1")
    (root / ".hidden").write_text("tea", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("tea", encoding="utf-8")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "way-out").symlink_to(tmp_path)
    return root


@pytest.fixture
def librarian(library: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The module, looking at that directory."""
    monkeypatch.setenv("LIBRARIAN_ROOT", str(library))
    return runpy.run_path(str(EXAMPLES / "librarian.py"))


def test_the_librarian_finds_what_is_there(librarian: dict[str, Any]) -> None:
    assert librarian["list_files"]() == ["tea.md", "sub/image.png", "sub/long.txt"]
    assert librarian["search_text"]("TEA") == ["tea.md:1: About tea.", "tea.md:2: Tea is a drink."]
    assert librarian["read_file"]("tea.md", 2) == "Tea is a drink."
    assert librarian["read_file"]("sub/long.txt").endswith("(it goes on at line 301)")


@pytest.mark.parametrize("path", ["../secret.txt", "link.txt", "way-out/secret.txt", "/etc/passwd"])
def test_the_librarian_stays_in_its_directory(librarian: dict[str, Any], path: str) -> None:
    with pytest.raises(ValueError, match="outside of the directory"):
        librarian["read_file"](path)


def test_a_note_saved_again_is_one_note(librarian: dict[str, Any], library: Path) -> None:
    """As after a crash: the same call has the same key."""
    save_note, context = librarian["save_note"], ToolContext(key="k1")
    assert save_note("Tea", "A drink.", context) == save_note("Tea", "A drink.", context)
    [note] = (library / "librarian-notes").iterdir()
    assert note.read_text(encoding="utf-8") == "# Tea\n\nA drink.\n"


def test_the_librarian_answers_without_a_key(library: Path) -> None:
    """The commands of docs/howto/command-line.md: real HTTP to a stub of its model."""
    pytest.importorskip("pydantic_ai")
    stub = start(EXAMPLES / "librarian_stub.py", cwd=library)
    assert stub.stdout is not None
    try:
        lines = [stub.stdout.readline() for _ in range(2)]
        given = dict(line.strip().removeprefix("export ").split("=", 1) for line in lines)
        printed = finish(
            start(
                "-m",
                *("perdure", "run", str(EXAMPLES / "librarian.py"), "What is tea?", "--json"),
                cwd=library,
                LIBRARIAN_ROOT=str(library),
                **given,
            )
        )
    finally:
        stub.kill()
        stub.communicate()
    last = json.loads(printed.splitlines()[-1])
    assert last["status"] == "completed"
    assert "- tea.md:2: Tea is a drink." in last["output"]


def test_a_refund_that_was_interrupted_is_paid_once(tmp_path: Path) -> None:
    """A person approves, the process dies after the payment, and the probe finds it."""

    def perdure(*arguments: str) -> Any:
        return start("-m", "perdure", *arguments, cwd=tmp_path)

    message = "Refund order 42: 1999 cents"
    rules = str(EXAMPLES / "refund.toml")
    asking = perdure(
        "run", f"{EXAMPLES / 'refund.py'}:support", message, "--policy", rules, "--json"
    )
    printed, _ = asking.communicate(timeout=60)
    assert asking.returncode == 9, printed
    run = json.loads(printed.splitlines()[-1])
    assert run["waiting_for"][0]["arguments"] == {"order": "42", "cents": 1999}

    paying = perdure("approvals", "approve", run["run"], "--yes")
    assert paying.stdout is not None
    assert any(line.startswith("paid: ") for line in paying.stdout)
    paying.kill()
    paying.communicate()

    finish(perdure("resume"))
    last = json.loads(finish(perdure("runs", "show", run["run"], "--json")))
    [payment] = (tmp_path / "payments.jsonl").read_text(encoding="utf-8").splitlines()
    assert last["status"] == "completed"
    assert last["output"] == f"Refunded: {json.loads(payment)['receipt']}."


def test_every_example_has_a_line_in_the_docs() -> None:
    page = (ROOT / "docs" / "howto" / "command-line.md").read_text(encoding="utf-8")
    assert [
        file.name for file in EXAMPLES.glob("*.py") if f"`examples/{file.name}`" not in page
    ] == []
