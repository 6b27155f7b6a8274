"""Where a function is defined, so that another process can find it without running a program."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from perdure.core.errors import InvalidInput

_STAND_IN = "__perdure_file__"
"""The name of a module loaded by its file: not its own, which may be that of another module."""


class Origin(msgspec.Struct, frozen=True):
    """A function by its module's name and file and its own qualified name."""

    module: str
    file: str
    qualname: str


def origin_of(function: Callable[..., Any], name: str) -> Origin:
    """Return where the function of tool `name` is defined.

    Raises `InvalidInput` if another process could not find it there.
    """
    base = inspect.unwrap(function)
    where = f"tool {name!r} is isolated"
    if not inspect.isfunction(base) or "<" in base.__qualname__:
        raise InvalidInput(
            f"{where}, and {base.__qualname__} cannot be found by another process: "
            "define the function at the top of a module"
        )
    file = Path(base.__code__.co_filename).absolute()
    if not file.exists():
        raise InvalidInput(f"{where}, and there is no file {str(file)!r} to import it from")
    module = base.__module__
    if module == "__main__":
        # `python -m package.module` leaves the real name in the spec.
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        module = spec.name if spec is not None else module
    return Origin(module, str(file), base.__qualname__)


def load(origin: Origin) -> Any:
    """Import the module of `origin`, by name or by file, and return what stands there.

    Whatever the module raises on import comes out.
    """
    found: Any = _module(origin)
    for part in origin.qualname.split("."):
        found = getattr(found, part)
    return found


def _module(origin: Origin) -> ModuleType:
    if origin.module != "__main__" and _is_importable(origin):
        return importlib.import_module(origin.module)
    loader = SourceFileLoader(_STAND_IN, origin.file)
    module = importlib.util.module_from_spec(ModuleSpec(_STAND_IN, loader, origin=origin.file))
    module.__file__ = origin.file
    sys.modules[_STAND_IN] = module
    loader.exec_module(module)
    return module


def _is_importable(origin: Origin) -> bool:
    """Say whether the module's name leads to its file: two files may go by one name."""
    try:
        spec = importlib.util.find_spec(origin.module)
        return spec is not None and Path(origin.file).samefile(spec.origin or "")
    except (ImportError, ValueError, OSError):
        return False
