"""`Credentials`: resolves references where calls are made, keeps what may be kept, and hides it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from perdure.core.agent import AgentSpec
from perdure.core.errors import InvalidInput
from perdure.core.references import scheme_of
from perdure.ports.clock import Clock
from perdure.ports.credentials import Credential, CredentialError, CredentialProvider, Secret
from perdure.worker.redaction import SECRET_CHARS_MIN, remember

RESOLVE_MS_MAX = 10_000
"""How long a provider of credentials may take to answer."""

KEPT_MAX = 1_000
_log = logging.getLogger("perdure.worker")


class Credentials:
    """The secrets of one worker, by their references.

    `providers` resolve the references of their scheme. What one gave is kept until it expires;
    calls that ask at the same time share one question.
    """

    def __init__(self, providers: Mapping[str, CredentialProvider], clock: Clock) -> None:
        self._providers = providers
        self._clock = clock
        self._kept: dict[str, Credential] = {}
        self._asking: dict[str, asyncio.Task[Secret]] = {}

    def check(self, spec: AgentSpec) -> None:
        """Raise `InvalidInput` if an agent has a reference that nothing here can resolve."""
        for name, reference in spec.credentials.items():
            if scheme_of(reference) not in self._providers:
                # The scheme is not repeated: `user:password` has one, too.
                raise InvalidInput(
                    f"agent {spec.name!r}: no provider resolves the reference in "
                    f"credentials[{name!r}]; known are {', '.join(sorted(self._providers))}. Hand "
                    "over others with Runtime(..., credential_providers={...}) or Worker(...)"
                )

    async def get(self, reference: str) -> Secret:
        """Return the secret that a reference stands for now. Raises `CredentialError`."""
        kept = self._kept.get(reference)
        if kept is not None and (kept.expires_at or 0) > self._clock.now_ms():
            return kept.value
        self._kept.pop(reference, None)
        asking = self._asking.get(reference)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._ask(reference))
            self._asking[reference] = asking
            asking.add_done_callback(lambda _: self._asking.pop(reference, None))
            asking.add_done_callback(_retrieve)
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            if not asking.cancelled():
                raise
        raise CredentialError(
            f"its provider did not answer within {RESOLVE_MS_MAX / 1000:g} s", transient=True
        )

    async def renew(self, reference: str, refused: Secret) -> Secret | None:
        """Forget a secret that was refused, and return another one if there is one by now."""
        kept = self._kept.get(reference)
        if kept is not None and kept.value == refused:
            del self._kept[reference]
        fresh = await self.get(reference)
        return None if fresh == refused else fresh

    async def gather(
        self, references: Mapping[str, str], names: Iterable[str]
    ) -> dict[str, Secret]:
        """Return the secrets with these names. Raises `CredentialError` that names the first."""
        found = {}
        for name in names:
            try:
                found[name] = await self.get(references[name])
            except CredentialError as error:
                told = f"the credential {name!r} cannot be had: {error}"
                raise CredentialError(told, transient=error.transient) from None
        return found

    async def renew_all(
        self, references: Mapping[str, str], refused: Mapping[str, Secret]
    ) -> dict[str, Secret] | None:
        """Return all of these anew, or None if not one of them has changed."""
        changed = {
            name: fresh
            for name, secret in refused.items()
            if (fresh := await self.renew(references[name], secret)) is not None
        }
        return {**refused, **changed} if changed else None

    def close(self) -> None:
        """Forget everything, and wait for no provider any more."""
        self._kept.clear()
        for asking in tuple(self._asking.values()):
            asking.cancel()

    async def _ask(self, reference: str) -> Secret:
        provider = self._providers.get(scheme_of(reference))
        if provider is None:
            raise CredentialError(f"no provider here is for it: {', '.join(self._providers)} are")
        task = asyncio.current_task()
        assert task is not None
        late = self._clock.call_later(RESOLVE_MS_MAX, lambda: _cancel(task))
        try:
            credential = await provider.resolve(reference)
            value = credential.value.reveal()
        except CredentialError:
            raise
        except Exception as error:  # noqa: BLE001  a provider is somebody else's code
            # What a provider's library says may hold the very token that it was asked with.
            _log.debug("a provider of credentials raised %s", type(error).__qualname__)
            text = f"its provider raised {type(error).__qualname__}"
            raise CredentialError(text, transient=True) from None
        finally:
            late.cancel()
        if len(value) < SECRET_CHARS_MIN:
            raise CredentialError(
                f"it has fewer than {SECRET_CHARS_MIN} characters, and could not be kept out of "
                "ordinary text"
            )
        remember(value)
        if credential.expires_at is not None:
            while len(self._kept) >= KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            self._kept[reference] = credential
        return credential.value


def _cancel(task: asyncio.Task[Secret]) -> None:
    task.cancel()


def _retrieve(task: asyncio.Task[Secret]) -> None:
    """Look at an outcome that nobody may wait for any more."""
    if not task.cancelled():
        task.exception()
