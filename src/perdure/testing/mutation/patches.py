"""Parts of the engine, replaced by name and put back.

What is broken is broken at seams that stay: functions of the core, and public methods of stores,
workers and the runtime. A name that does not exist any more is an error, never a mutant that
breaks nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from perdure.core.errors import InvalidInput

Wrap = Callable[[Any], Any]
"""Takes the original and returns what stands in its place."""


class Patches:
    """What was replaced, so that it can be put back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def method(self, owner: type, name: str, wrap: Wrap) -> None:
        """Replace a method of a class. Raises `InvalidInput` if the class does not define it."""
        original = vars(owner).get(name)
        if original is None:
            raise InvalidInput(f"{owner.__qualname__}.{name} does not exist: mend the mutant")
        if isinstance(original, classmethod):
            replacement: Any = classmethod(wrap(original.__func__))
        else:
            replacement = wrap(original)
        setattr(owner, name, replacement)
        self._undo.append(lambda: setattr(owner, name, original))

    def name(self, module: str, name: str, wrap: Wrap) -> None:
        """Replace a name of a module, also in every module that has imported it.

        Raises `InvalidInput` if the module does not have it.
        """
        original = vars(importlib.import_module(module)).get(name)
        if original is None:
            raise InvalidInput(f"{module}.{name} does not exist: mend the mutant")
        replacement = wrap(original)
        for holder in tuple(sys.modules.values()):
            names = getattr(holder, "__dict__", {})
            if names.get(name) is original:
                setattr(holder, name, replacement)
                self._undo.append(partial(setattr, holder, name, original))

    def undo(self) -> None:
        """Put everything back, the last first."""
        while self._undo:
            self._undo.pop()()
