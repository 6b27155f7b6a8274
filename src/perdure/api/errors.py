"""What is wrong with a request: one exception that knows its status and its body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from perdure.core.errors import InvalidInput

Fields = Mapping[str, Sequence[str]]

BLANK = "can't be blank"
INVALID = "is invalid"
TAKEN = "has already been taken"


class Failure(msgspec.Struct, frozen=True):
    """Why a request was refused: a sentence, or for each field what was expected of it."""

    error: str | dict[str, list[str]]


class Rejected(InvalidInput):
    """A request that cannot be carried out: `status` is the answer's, `error` the body's.

    `retry_after_s` says after how many seconds it may be asked again, if that is known.
    """

    def __init__(
        self, status: int, error: str | Fields, *, retry_after_s: int | None = None
    ) -> None:
        self.status = status
        self.error = error
        self.retry_after_s = retry_after_s
        super().__init__(error if isinstance(error, str) else _sentence(error))

    def body(self) -> Failure:
        """Return what the answer says."""
        if isinstance(self.error, str):
            return Failure(self.error)
        return Failure({field: list(said) for field, said in self.error.items()})


def _sentence(fields: Fields) -> str:
    return "; ".join(f"{field} {', '.join(said)}" for field, said in fields.items())
