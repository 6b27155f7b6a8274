"""How bad the world is just now: how slow, how lossy, how well tools, models and people behave."""

from __future__ import annotations

from collections.abc import Callable

Draw = Callable[[], float]


class Weather:
    """Probabilities, drawn once for a seed; all of them are nothing once the world has healed."""

    __slots__ = (
        "bad",
        "lose",
        "model_fails",
        "slow",
        "slow_us",
        "tool_fails",
        "worker_fails",
    )

    def __init__(self, draw: Draw) -> None:
        rough = draw()
        self.bad = True
        self.lose = 0.02 * draw() ** 2 if rough < 0.5 else 0.0
        self.slow = 0.12 * draw() if rough < 0.7 else 0.01
        self.slow_us = 8_000_000 if draw() < 0.15 else 300_000
        self.model_fails = 0.3 * draw() ** 2
        self.tool_fails = 0.5 * draw() ** 2
        self.worker_fails = 0.9 if draw() < 0.06 else 0.25 * draw() ** 2

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self.bad = False
        self.lose = self.slow = self.model_fails = self.tool_fails = self.worker_fails = 0.0

    def delay_us(self, draw: Draw) -> int:
        """Return how long a message is on its way."""
        chance = draw()
        if chance < self.slow:
            return int(self.slow_us * draw())
        return 0 if chance < 0.6 else int(3_000 * chance)

    def fate(self, draw: Draw) -> str:
        """Return what becomes of a request: fine, request lost, or answer lost."""
        if not self.lose:
            return "fine"
        chance = draw()
        if chance >= self.lose:
            return "fine"
        return "request lost" if chance < self.lose / 2 else "answer lost"
