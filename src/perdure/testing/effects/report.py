"""What became of a tool's effects when its process was killed around the call, as a table."""

from __future__ import annotations

import msgspec

SHOWN_MAX = 10
_HEADS = ("killed at", "runs", "kills", "calls", "effects", "in doubt", "wrong")


class Place(msgspec.Struct, frozen=True):
    """What came of the runs that were killed, for the last time, at one place.

    `kills` are more than `runs` where a run was killed again while it recovered. `calls` is how
    often the function was called, or about to be; `effects` what the far end counted; `in_doubt`
    how many runs showed an unknown outcome; `wrong` in how many the tool broke its promise.
    """

    place: str
    runs: int = 0
    kills: int = 0
    calls: int = 0
    effects: int = 0
    in_doubt: int = 0
    wrong: int = 0


class Violation(msgspec.Struct, frozen=True):
    """A run that shows that a tool is not what it declares: where it was killed, and what was seen.

    `at` repeats it: `check_effects(..., at=...)`. It is empty for the run that nobody disturbed.
    """

    place: str
    at: str
    what: str


class Effects(msgspec.Struct, frozen=True):
    """What was found of one tool, by the places at which its process was killed."""

    tool: str
    effect: str
    seed: int
    kills: int
    places: tuple[Place, ...]
    violations: tuple[Violation, ...]
    seconds: float

    def table(self) -> str:
        """Return the counts for each place, and below them what was wrong."""
        rows = [_HEADS, *(tuple(map(str, msgspec.structs.astuple(one))) for one in self.places)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        runs = sum(one.runs for one in self.places)
        head = (
            f"{self.tool} declares `{self.effect}`: {runs} runs, {self.kills} kills, "
            f"wrong: {len(self.violations)} (seed {self.seed}, {self.seconds:.1f} s)"
        )
        return "\n".join([head, "", *lines, *self._wrong()])

    def _wrong(self) -> list[str]:
        if not self.violations:
            return []
        lines = [""]
        for one in self.violations[:SHOWN_MAX]:
            again = f' (at="{one.at}")' if one.at else ""
            lines.append(f"WRONG, {one.place}{again}: {one.what}")
        if len(self.violations) > SHOWN_MAX:
            lines.append(f"and {len(self.violations) - SHOWN_MAX} more")
        return lines

    def check(self) -> None:
        """Raise `AssertionError` with the table if the tool is not what it declares."""
        if self.violations:
            raise AssertionError(self.table())
