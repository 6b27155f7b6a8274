"""The pages that people read, in parts: blocks of code, links, headings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
FENCE: Final = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SECONDS_MAX: Final = 60


class Block(NamedTuple):
    """A fenced block; `mark` is what the comment right before it says."""

    page: Path
    number: int
    language: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        """How a test calls it."""
        return f"{self.page.relative_to(ROOT)}:{self.number}"


def pages() -> list[Path]:
    """Return every page for people."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8") if text is None else text
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], *_rest(found))
        for found in FENCE.finditer(text)
    ]


def _rest(found: re.Match[str]) -> tuple[str, str]:
    return found["mark"] or "", found["text"]


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(page: Path) -> set[str]:
    """Return the names under which the headings of a page can be linked to."""
    found = set()
    for line in prose(page.read_text(encoding="utf-8")).splitlines():
        if line.startswith("#"):
            words = re.sub(r"[^\w\s-]", "", line.lstrip("#").strip().lower())
            found.add(words.replace(" ", "-"))
    return found


def broken_links(page: Path, text: str | None = None) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    text = page.read_text(encoding="utf-8") if text is None else text
    broken = []
    for link in LINK.findall(prose(text)):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def start(program: Path | str, *arguments: str, cwd: Path, **environment: str) -> subprocess.Popen:
    """Start a Python program of the docs; its output is text, line by line."""
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for a program and return what it printed; fails if it failed."""
    try:
        printed, _ = process.communicate(timeout=SECONDS_MAX)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    return printed
