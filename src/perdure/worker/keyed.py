"""A named model whose key comes from the agent's credentials, resolved at every call."""

from __future__ import annotations

from collections.abc import Callable

from perdure.core.messages import ModelReply
from perdure.ports.credentials import CredentialError, Secret
from perdure.ports.models import Model, ModelError, ModelRequest, OnText
from perdure.worker.credentials import Credentials

_REFUSED = (401, 403)


class _Open:
    """A model that was made with one key, and how many calls are under way on it."""

    __slots__ = ("calls", "model")

    def __init__(self, model: Model) -> None:
        self.model = model
        self.calls = 0


class KeyedModel:
    """Asks a model with the key that a reference stands for now.

    A key that has changed makes a new model; the one before is closed after its last call. When the
    provider refuses a key, it is resolved anew, and another one is tried, once.
    """

    def __init__(
        self, reference: str, credentials: Credentials, make: Callable[[str], Model]
    ) -> None:
        self._reference = reference
        self._credentials = credentials
        self._make = make
        self._open: dict[Secret, _Open] = {}
        self._latest: Secret | None = None

    async def reply(self, request: ModelRequest, on_text: OnText) -> ModelReply:
        """Return the whole reply; raises `ModelError`, of a missing key too."""
        try:
            key = await self._credentials.get(self._reference)
        except CredentialError as error:
            raise _missing(request, error) from None
        try:
            return await self._ask(key, request, on_text)
        except ModelError as error:
            if error.status not in _REFUSED:
                raise
            refused = error
        try:
            other = await self._credentials.renew(self._reference, key)
        except CredentialError as error:
            raise _missing(request, error) from None
        if other is None:
            raise refused
        return await self._ask(other, request, on_text)

    async def aclose(self) -> None:
        """Close every model that was made."""
        opened, self._open = list(self._open.values()), {}
        for each in opened:
            await _close(each.model)

    async def _ask(self, key: Secret, request: ModelRequest, on_text: OnText) -> ModelReply:
        opened = self._open.get(key)
        if opened is None:
            opened = self._open[key] = _Open(self._make(key.reveal()))
        self._latest = key
        opened.calls += 1
        try:
            return await opened.model.reply(request, on_text)
        finally:
            opened.calls -= 1
            await self._close_old()

    async def _close_old(self) -> None:
        for key, opened in tuple(self._open.items()):
            if key != self._latest and not opened.calls:
                del self._open[key]
                await _close(opened.model)


async def _close(model: Model) -> None:
    close = getattr(model, "aclose", None)
    if close is not None:
        await close()


def _missing(request: ModelRequest, error: CredentialError) -> ModelError:
    return ModelError(
        f"the key for {request.model} cannot be had: {error}",
        error_class="transient" if error.transient else "validation",
        code="missing_api_key",
    )
