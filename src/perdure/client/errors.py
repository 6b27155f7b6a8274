"""What can come of asking a server, besides an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.api.shapes import Run
from perdure.core.errors import PerdureError


class ApiError(PerdureError):
    """The server refused a request: `status` is its answer's, `error` its words.

    `error` is a sentence, or for each field that is wrong what was expected of it; `words` is the
    same in one line. `asked` is the method and the path. A 429 says in `retry_after_s` when to ask
    again.
    """

    def __init__(
        self,
        asked: str,
        status: int,
        error: str | Mapping[str, Sequence[str]],
        retry_after_s: float | None = None,
    ) -> None:
        self.asked = asked
        self.status = status
        self.error = error
        self.retry_after_s = retry_after_s
        if isinstance(error, str):
            self.words = error
        else:
            self.words = "; ".join(f"{field} {', '.join(words)}" for field, words in error.items())
        super().__init__(f"{asked} was answered {status}: {self.words}")


class Unreachable(PerdureError):
    """No answer came; whether the request was carried out is unknown."""


class RunWaits(PerdureError):
    """A run has no result yet and gets none by itself: it waits for a person.

    `run.waits` says for what. Reply to it, resolve its call, or release its session, and ask for
    the result again.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        asked = run.waiting_for.question if run.waiting_for is not None else "a call's outcome"
        for wait in run.waits:
            if wait.what == "release":
                asked = f"session {run.conversation_id} is in quarantine: {wait.needs}"
        super().__init__(f"run {run.id} waits for a person: {asked}")
