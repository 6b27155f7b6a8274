"""The quickstart of the README, run as a reader runs it: by itself, and killed in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks, finish, start

ANSWER = "All packed, says the function."


@pytest.fixture
def quickstart(tmp_path: Path) -> Path:
    """The block of the README as a file, with less patience: its work takes no time."""
    [block] = [each for each in blocks(ROOT / "README.md") if each.language == "python"]
    assert "time.sleep(2)" in block.text
    path = tmp_path / "quickstart.py"
    path.write_text(block.text.replace("time.sleep(2)", "time.sleep(0)"), encoding="utf-8")
    return path


def packed(printed: str) -> list[str]:
    """Return the lines that the tool printed."""
    return [line for line in printed.splitlines() if line.startswith("packing")]


def killed_at(program: Path, line: str) -> str:
    """Run the program until it prints a line that begins so; SIGKILL it; return what it printed."""
    process = start(program, cwd=program.parent)
    assert process.stdout is not None
    printed = ""
    for printed_line in process.stdout:
        printed += printed_line
        if printed_line.startswith(line):
            break
    process.kill()
    process.communicate()
    assert process.returncode == -9, printed
    return printed


def test_it_completes_and_knows_it_the_next_time(quickstart: Path) -> None:
    first = finish(start(quickstart, cwd=quickstart.parent))
    assert [line.split(",")[0] for line in packed(first)] == [
        "packing order 1",
        "packing order 2",
        "packing order 3",
    ]
    assert first.splitlines()[-1] == ANSWER
    assert finish(start(quickstart, cwd=quickstart.parent)) == f"{ANSWER}\n"


def test_killed_in_the_middle_it_goes_on(quickstart: Path) -> None:
    """What was recorded is not done again; what was under way is, with the same key."""
    patient = quickstart.read_text(encoding="utf-8").replace("time.sleep(0)", "time.sleep(60)")
    quick, slow = quickstart, quickstart.with_name("slow.py")
    slow.write_text(patient.replace("time.sleep(60)", "time.sleep(60 * (order == 2))"), "utf-8")
    before = packed(killed_at(slow, "packing order 2"))
    after = finish(start(quick, cwd=quick.parent))
    assert [line.split(",")[0] for line in before] == ["packing order 1", "packing order 2"]
    assert packed(after)[0] == before[1], "the same order, under the same key"
    assert [line.split(",")[0] for line in packed(after)] == ["packing order 2", "packing order 3"]
    assert after.splitlines()[-1] == ANSWER
