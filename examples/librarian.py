"""An agent that answers questions about a directory of yours, and can leave notes in it.

    export ANTHROPIC_API_KEY=...
    perdure run examples/librarian.py:librarian "Which files talk about leases?"

LIBRARIAN_ROOT is the directory (without it, the current one), PERDURE_MODEL the model. Without a
key: see examples/librarian_stub.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from perdure import Agent, ToolContext, tool

ROOT = Path(os.environ.get("LIBRARIAN_ROOT", ".")).resolve()
NOTES = "librarian-notes"
FILES_MAX = 500
MATCHES_MAX = 50
SEARCHED_BYTES_MAX = 1_000_000
READ_LINES_MAX = 300
LINE_CHARS_MAX = 500


def inside(path: str) -> Path:
    """Return a path below the directory; a link or `..` that leads out of it is refused."""
    found = (ROOT / path).resolve()
    if not found.is_relative_to(ROOT):
        raise ValueError(f"{path!r} is outside of the directory")
    return found


def files_below(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, in order; what begins with a dot is left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and path.resolve().is_relative_to(ROOT) and path.is_file():
                yield str(path.relative_to(ROOT))


@tool(effect="read")
def list_files(folder: str = ".") -> list[str]:
    """List the files below a folder, at most 500 of them.

    Args:
        folder: Where to look, relative to the directory.
    """
    found = []
    for path in files_below(inside(folder)):
        if len(found) == FILES_MAX:
            return [*found, "(there are more: name a folder below)"]
        found.append(path)
    return found


@tool(effect="read")
def search_text(text: str, folder: str = ".") -> list[str]:
    """Find a text in the files below a folder, without regard to upper and lower case.

    Args:
        text: What to look for, literally.
        folder: Where to look, relative to the directory.
    """
    found: list[str] = []
    for path in files_below(inside(folder)):
        data = (ROOT / path).read_bytes()
        if len(data) > SEARCHED_BYTES_MAX or b"\0" in data:
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
            if text.lower() in line.lower():
                found.append(f"{path}:{number}: {line.strip()[:LINE_CHARS_MAX]}")
            if len(found) == MATCHES_MAX:
                return [*found, "(there are more)"]
    return found


@tool(effect="read")
def read_file(path: str, first_line: int = 1) -> str:
    """Read a text file, up to 300 lines at a time.

    Args:
        path: The file, relative to the directory.
        first_line: Where to begin, counted from 1.
    """
    with inside(path).open(encoding="utf-8", errors="replace") as file:
        shown: list[str] = []
        for number, line in enumerate(file, start=1):
            if len(shown) == READ_LINES_MAX:
                return "\n".join([*shown, f"(it goes on at line {number})"])
            if number >= first_line:
                shown.append(line.rstrip("\n")[:LINE_CHARS_MAX])
    return "\n".join(shown)


@tool(effect="idempotent")
def save_note(title: str, text: str, ctx: ToolContext) -> str:
    """Save a note for the user, as a file of its own.

    Args:
        title: A few words.
        text: The note, in Markdown.
    """
    # The name comes from the key of the call: done again after a crash, it is the same file.
    target = inside(f"{NOTES}/{ctx.key}.md")
    target.parent.mkdir(exist_ok=True)
    half = target.with_suffix(".part")
    half.write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
    half.replace(target)
    return str(target.relative_to(ROOT))


librarian = Agent(
    "librarian",
    model=os.environ.get("PERDURE_MODEL", "anthropic:claude-sonnet-5"),
    instructions=(
        "You answer questions about the files of one directory. Look before you answer: search, "
        "then read what matters. Name the files and lines you rely on. When you find nothing, say "
        "so. Save a note only when the user asks for one."
    ),
    tools=[list_files, search_text, read_file, save_note],
)
