"""`@tool`: a function that a model may call, with what it promises about being repeated."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar, cast, get_args, overload

from perdure.core.agent import Effect, OnUnknown, ToolSpec
from perdure.core.errors import InvalidInput
from perdure.core.references import MODEL, is_name
from perdure.worker import docs
from perdure.worker.context import ToolContext
from perdure.worker.origin import Origin, origin_of
from perdure.worker.schema import Parameters

P = ParamSpec("P")
R = TypeVar("R")
Probe = Callable[..., Any]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
VERSION_CHARS_MAX = 64


class Tool(Generic[P, R]):
    """A function with its specification. Calling it calls the function, and nothing else.

    `origin` says where an isolated tool's process finds the function.
    """

    def __init__(
        self,
        function: Callable[P, R],
        spec: ToolSpec,
        parameters: Parameters,
        probe: Probe | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.spec = spec
        self.is_async = inspect.iscoroutinefunction(function)
        self.origin: Origin | None = origin_of(function, spec.name) if spec.isolated else None
        self._parameters = parameters
        self._probe = probe
        self.probe_is_async = inspect.iscoroutinefunction(probe)
        self._probe_takes_context = probe is not None and _takes_context(probe, spec.name)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Tool {self.spec.name} ({self.spec.effect})>"

    def arguments(self, raw: object) -> dict[str, Any]:
        """Return the arguments a model sent as the types that the function asks for.

        Raises `InvalidInput` with every missing, unknown or wrong argument and its place.
        """
        return self._parameters.convert(raw)

    def run(self, arguments: dict[str, Any], context: ToolContext) -> R:
        """Call the function with checked arguments, and the context where it asks for it.

        An async function gives a coroutine, as it does for everybody.
        """
        filled = arguments | dict.fromkeys(self._parameters.context, context)
        return cast("Callable[..., R]", self.function)(**filled)

    def probe(self, context: ToolContext) -> Any:
        """Ask what became of the call with this key; a coroutine if the probe is async.

        None: undecided. False: it did not happen. True: it happened. Anything else: it happened,
        and this was its result. Without a probe, always None.
        """
        if self._probe is None:
            return None
        return self._probe(context.key, *(context,) * self._probe_takes_context)


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    effect: Effect | None = None,
    probe: Probe | None = None,
    on_unknown: OnUnknown | None = None,
    timeout: float = 300,
    capabilities: Iterable[str] = (),
    isolated: bool = False,
    version: str | int = "",
    credentials: Iterable[str] = (),
    key_window: float | None = None,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    effect: Effect | None = None,
    probe: Probe | None = None,
    on_unknown: OnUnknown | None = None,
    timeout: float = 300,
    capabilities: Iterable[str] = (),
    isolated: bool = False,
    version: str | int = "",
    credentials: Iterable[str] = (),
    key_window: float | None = None,
) -> Any:
    """Make a tool of a function, sync or async; use it bare, or with arguments.

    `effect` is what the function promises about being repeated: `read` and `idempotent` are done
    again after a crash, `once` never; undeclared is `once`. `probe(key)` or `probe(key, context)`
    can say later whether a `once` call took effect (see `Tool.probe`). `on_unknown` says who hears
    of an outcome that nobody can know: the model (`tell`, the default while the effect is
    undeclared) or a person (`ask`, the default once it is declared). `timeout` is in seconds.
    `isolated` runs the function in a process of its own, which can be killed. A call that was made
    for one `version` is never executed by another. `credentials` names the secrets that the
    function is handed as `context.credential(name)`; its agent says where they are. `capabilities`
    are what a call needs that agents have to be granted, as in `net.http`. `key_window` is for how
    many seconds the far end of an `idempotent` tool honours a key; None is for ever.

    The description and those of the parameters come from the docstring. A parameter annotated with
    `ToolContext` is filled in by the worker. Raises `InvalidInput` for what cannot be a tool.
    """
    given = {
        "effect": effect,
        "on_unknown": on_unknown,
        "timeout": timeout,
        "capabilities": capabilities,
        "isolated": isolated,
        "version": version,
        "credentials": credentials,
        "key_window": key_window,
    }
    if function is None:
        return lambda function: _make(function, name, probe, **given)
    return function if isinstance(function, Tool) else _make(function, name, probe, **given)


def _make(
    function: Callable[..., Any], name: Any, probe: Probe | None, **given: Any
) -> Tool[..., Any]:
    if not inspect.isroutine(function):
        raise InvalidInput(
            f"a tool is made of a function, and {function!r} is none: wrap it in one"
        )
    name = function.__name__ if name is None else name
    if not NAME_PATTERN.fullmatch(name if isinstance(name, str) else ""):
        raise InvalidInput(
            f"{name!r} cannot be the name of a tool: use 1 to 64 letters, digits, `_` and `-`, "
            "as in tool(name='look_up')"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidInput(f"tool {name!r} yields, and a call has one result: return a list")
    told = docs.read(inspect.getdoc(function))
    parameters = Parameters(function, name, told.parameters)
    spec = ToolSpec(
        name=name,
        description=told.description,
        parameters=parameters.schema,
        probe=probe is not None,
        **_promises(name, probe is not None, **given),
    )
    return Tool(function, spec, parameters, probe)


def _promises(
    name: str,
    probed: bool,
    *,
    effect: Any,
    on_unknown: Any,
    timeout: Any,
    capabilities: Any,
    isolated: Any,
    version: Any,
    credentials: Any,
    key_window: Any,
) -> dict[str, Any]:
    """Return what is declared of a tool, checked and with its defaults, as fields of its spec."""
    for value, what, choices in (
        (effect, "effect", get_args(Effect)),
        (on_unknown, "on_unknown", get_args(OnUnknown)),
    ):
        if value is not None and value not in choices:
            raise InvalidInput(f"tool {name!r}: {what} is one of {choices}, not {value!r}")
    if probed and effect in ("read", "idempotent"):
        raise InvalidInput(f"tool {name!r}: only a `once` tool is probed; a {effect} one is redone")
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not 0.001 <= timeout < float("inf"):
        raise InvalidInput(f"tool {name!r}: timeout is a number of seconds, not {timeout!r}")
    version = str(version) if isinstance(version, int) else version
    if not isinstance(version, str) or len(version) > VERSION_CHARS_MAX:
        raise InvalidInput(
            f"tool {name!r}: version is a text of at most {VERSION_CHARS_MAX} characters, not "
            f"{version!r}"
        )
    cautious = effect == "once" or probed
    return {
        "effect": effect or "once",
        "on_unknown": on_unknown or ("ask" if cautious else "tell"),
        "timeout_ms": round(timeout * 1000),
        "capabilities": strings(capabilities, f"tool {name!r}", "capabilities"),
        "isolated": bool(isolated),
        "version": version,
        "credentials": _credentials(credentials, name),
        "key_window_ms": _window_ms(key_window, effect, name),
    }


def strings(given: Any, where: str, what: str) -> tuple[str, ...]:
    """Return one string or several as a tuple. Raises `InvalidInput` for anything else."""
    one = isinstance(given, str) or not isinstance(given, Iterable)
    found = (given,) if one else tuple(given)
    if not all(each and isinstance(each, str) for each in found):
        raise InvalidInput(f"{where}: {what} are strings, not {found!r}")
    return found


def _window_ms(seconds: Any, effect: Any, name: str) -> int | None:
    if seconds is None:
        return None
    if effect != "idempotent":
        raise InvalidInput(f"tool {name!r}: key_window is for an `idempotent` tool alone")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 1:
        raise InvalidInput(
            f"tool {name!r}: key_window is a number of seconds, 1 or more, not {seconds!r}"
        )
    return round(seconds * 1000)


def _credentials(given: Any, name: str) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    if MODEL in names or not all(map(is_name, names)):
        # They are not repeated: somebody may have put the secret itself.
        raise InvalidInput(
            f"tool {name!r}: credentials are names, as in credentials=['stripe'], of letters, "
            f"digits, `_`, `.` and `-`; {MODEL!r} is not for tools. Its agent says where they are"
        )
    return names


def _takes_context(probe: Probe, name: str) -> bool:
    """Say whether a probe wants the context after the key."""
    if not callable(probe):
        raise InvalidInput(f"tool {name!r}: probe is a function of the key, not {probe!r}")
    try:
        signature = inspect.signature(probe)
        required = [
            each
            for each in signature.parameters.values()
            if each.default is each.empty and each.kind in _POSITIONAL
        ]
        signature.bind(*("key", "context")[: max(1, len(required))])
    except (TypeError, ValueError):
        raise InvalidInput(f"tool {name!r}: the probe takes (key) or (key, context)") from None
    return len(required) == 2
