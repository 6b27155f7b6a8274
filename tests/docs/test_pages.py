"""What the pages show is true: blocks compile and run, links lead somewhere, words keep to fact."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks, broken_links, finish, pages, prose, start

PAGES = pages()
PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]
RUN = [block for block in PYTHON if block.mark.startswith("run")]

# The promise is worded in docs/concepts.md. These would promise more than can be had.
FORBIDDEN = (
    "exactly-once execution",
    "exactly once execution",
    "executed exactly once",
    "never duplicates",
    "zero data loss",
    "survives anything",
    "the crash never happened",
)
README_LINES_MAX = 200
QUICKSTART_LINES_MAX = 30


def forbidden(text: str) -> list[str]:
    """Return the phrases of a text that promise too much."""
    flat = " ".join(text.lower().split())
    found = [phrase for phrase in FORBIDDEN if phrase in flat]
    every, recorded = flat.count("exactly once"), flat.count("recorded exactly once")
    return found + ["exactly once, of something that is not recorded"] * (every - recorded)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_a_python_block_compiles(block: Block) -> None:
    compile(block.text, block.name, "exec")


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_a_marked_block_runs(block: Block, tmp_path: Path) -> None:
    """`<!-- run -->` before a block, or `<!-- run: FILE -->` for one that wants a file."""
    program = tmp_path / "block.py"
    program.write_text(block.text, encoding="utf-8")
    wanted = block.mark.partition(":")[2].split()
    finish(start(program, *(str(ROOT / name) for name in wanted), cwd=tmp_path))


def test_most_blocks_are_run() -> None:
    """A block that cannot be run is the exception."""
    assert len(RUN) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve()
        for link in re.findall(r"\]\(([^)]+\.md[^)]*)\)", index.read_text(encoding="utf-8"))
    }
    generated_by_proof = ROOT / "docs" / "proof.md"
    wanted = {page for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert wanted - linked - {index, generated_by_proof} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_promises_too_much(page: Path) -> None:
    assert forbidden(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text", [*FORBIDDEN, "It runs exactly\nonce.", "recorded exactly once; sent exactly once"]
)
def test_a_promise_that_is_too_much_is_found(text: str) -> None:
    assert forbidden(text.title())


@pytest.mark.parametrize("path", ["src", "examples", "scripts"])
def test_no_source_promises_too_much(path: str) -> None:
    """Help texts and docstrings are read as well; there, answers may be given exactly once."""
    bad = {
        str(file.relative_to(ROOT)): found
        for file in sorted((ROOT / path).rglob("*.py"))
        if (found := [p for p in forbidden(file.read_text(encoding="utf-8")) if p in FORBIDDEN])
    }
    assert bad == {}


def test_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < README_LINES_MAX
    assert "![" not in readme, "no badges, no pictures"


def test_the_quickstart_of_the_readme_is_the_one_of_the_examples() -> None:
    [shown] = [each.text for each in blocks(ROOT / "README.md") if each.language == "python"]
    assert shown == (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert len(shown.splitlines()) <= QUICKSTART_LINES_MAX


def test_the_commands_of_the_readme_exist() -> None:
    """`make run` and the others."""
    named = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {"run", "test"} <= named <= targets


def test_broken_things_are_found() -> None:
    page = ROOT / "docs" / "index.md"
    text = "# A\n\n[a](nowhere.md) [b](concepts.md#nothing) [c](concepts.md#words)\n"
    assert broken_links(page, text) == ["nowhere.md", "concepts.md#nothing"]
    marked = blocks(page, "x\n\n<!-- run -->\n```python\nx = 1\n```\n")
    assert [(each.mark, each.text, each.number) for each in marked] == [("run", "x = 1\n", 3)]
    assert prose("a\n\n```sh\n[x](y)\n```\n").strip() == "a"
