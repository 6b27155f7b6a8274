"""Sessions that keep each other's promises badly: letters lost, sent too early, or to nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from perdure.core import commands as c
from perdure.runtime.post import Post
from perdure.testing.mutation.patches import Patches


def letters_marked_before_sent(patches: Patches) -> None:
    """Note that letters were delivered before they are: a crash in between loses them."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        async def send(self: Any, actor: Any, letters: Any) -> None:
            named = tuple(letter.id for letter in letters)
            self._on_done(actor, c.ReportDelivered(letters=named))
            await original(self, actor, letters)

        return send

    patches.method(Post, "_send", wrap)


def child_begun_anew(patches: Patches) -> None:
    """Give a child another id each time its letter is sent."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        async def command(self: Any, actor: Any, letter: Any) -> Any:
            told = await original(self, actor, letter)
            if isinstance(told, c.SendMessage):
                return replace(told, id=f"{told.id}-{self._clock.fresh_id()}")
            return told

        return command

    patches.method(Post, "_command", wrap)


def children_left_alone(patches: Patches) -> None:
    """Cancel nobody when a run is cancelled that others work for."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        async def deliver(self: Any, actor: Any, letter: Any) -> None:
            if letter.what != "cancel":
                await original(self, actor, letter)

        return deliver

    patches.method(Post, "_deliver_one", wrap)


MUTANTS = (letters_marked_before_sent, child_begun_anew, children_left_alone)
