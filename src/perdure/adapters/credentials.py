"""Credentials from the environment, from files, and from what is installed beside perdure."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from perdure.core.errors import InvalidInput
from perdure.ports.credentials import Credential, CredentialError, CredentialProvider, Secret

ENTRY_POINTS = "perdure.credentials"
"""The group of entry points: a scheme, and what returns its provider when it is called."""

FILE_BYTES_MAX = 64 * 1024


class Environment:
    """`env:NAME`: a variable of this process's environment, read at every call."""

    async def resolve(self, reference: str) -> Credential:
        """Return the variable's value; one that is missing or empty is a `CredentialError`."""
        name = reference.partition(":")[2]
        value = os.environ.get(name, "")
        if not value:
            raise CredentialError(
                f"the environment variable {name} is not set: set it where the worker runs"
            )
        return Credential(Secret(value))


class Files:
    """`file:/run/secrets/name`: a file, read at every call, so that it may be replaced any time.

    Line ends after the secret are not part of it.
    """

    async def resolve(self, reference: str) -> Credential:
        """Return the file's text; one that cannot be read or is empty is a `CredentialError`."""
        path = reference.partition(":")[2]
        try:
            value = await asyncio.to_thread(_read, Path(path))
        except OSError as error:
            # A file may be missing for a moment while it is replaced.
            why = error.strerror or type(error).__name__
            raise CredentialError(f"{path} cannot be read: {why}", transient=True) from None
        except ValueError:
            raise CredentialError(
                f"{path} is no credential: expected UTF-8 text of at most {FILE_BYTES_MAX} bytes"
            ) from None
        if not value:
            raise CredentialError(f"{path} is empty", transient=True)
        return Credential(Secret(value))


class Installed:
    """A provider that an entry point names; it is loaded when it is needed first."""

    def __init__(self, point: EntryPoint) -> None:
        self._point = point
        self._provider: CredentialProvider | None = None

    async def resolve(self, reference: str) -> Credential:
        """Ask the provider; one that cannot be loaded is a `CredentialError`."""
        if self._provider is None:
            try:
                # In a thread: it imports what somebody else wrote.
                self._provider = await asyncio.to_thread(self._load)
            except Exception as error:  # noqa: BLE001  as above
                why = type(error).__qualname__
                told = f"the provider {self._point.value!r} cannot be loaded: {why}"
                raise CredentialError(told) from None
        return await self._provider.resolve(reference)

    def _load(self) -> CredentialProvider:
        return _checked(self._point.name, self._point.load()())


def providers(given: Mapping[str, CredentialProvider]) -> dict[str, CredentialProvider]:
    """Return the providers by scheme: what is installed, `env` and `file`, and the given ones.

    Raises `InvalidInput` for something that is no provider.
    """
    found: dict[str, CredentialProvider] = {"env": Environment(), "file": Files()}
    for point in entry_points(group=ENTRY_POINTS):
        found[point.name] = Installed(point)
    for scheme, provider in given.items():
        found[scheme] = _checked(scheme, provider)
    return found


def _checked(scheme: str, provider: CredentialProvider) -> CredentialProvider:
    if not callable(getattr(provider, "resolve", None)):
        raise InvalidInput(
            f"the provider of credentials for {scheme!r} is a {type(provider).__name__} without "
            "`async def resolve(reference) -> Credential`"
        )
    return provider


def _read(path: Path) -> str:
    with path.open("rb") as file:
        body = file.read(FILE_BYTES_MAX + 1)
    if len(body) > FILE_BYTES_MAX:
        raise ValueError("too large")
    return body.decode().rstrip("\r\n")
