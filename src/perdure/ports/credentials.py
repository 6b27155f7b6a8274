"""CredentialProvider: from a reference to the secret that it stands for, on the worker.

Only workers resolve references, at the moment of a call. What comes of it is held in a `Secret`,
which no log, error, trace or JSON can show by accident.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

import msgspec

from perdure.core.errors import PerdureError

HIDDEN = "[secret]"
"""What stands wherever a secret would."""


class CredentialError(PerdureError):
    """A credential cannot be had. `transient` if the same question may be answered later."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class CredentialRefused(PerdureError):
    """For tools to raise: the far end did not accept a credential, and nothing took effect.

    What the tool was given is forgotten and resolved anew; if it has changed, the tool is run once
    more, with the same key.
    """


class Secret:
    """A text that shows itself to nobody but whoever calls `reveal`.

    It is equal to another with the same text. It cannot be pickled, copied into JSON or formatted.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return HIDDEN

    def __format__(self, spec: str) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Secret is not pickled or copied: call reveal() where its text is needed")


class Credential(msgspec.Struct, frozen=True):
    """A secret and until when it may be kept, in milliseconds since 1970 (UTC).

    One without `expires_at` is kept for the call that asked for it, and resolved again for the
    next.
    """

    value: Secret
    expires_at: int | None = None


class CredentialProvider(Protocol):
    """Resolves the references of one scheme."""

    async def resolve(self, reference: str) -> Credential:
        """Return what a reference (`scheme:rest`) stands for now.

        Raises `CredentialError`, whose text is told and recorded. Of any other exception only the
        class is told.
        """
        ...
