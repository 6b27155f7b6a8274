"""`Agent`: a model, instructions and tools under a name, checked when it is made."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import msgspec

from perdure.core.agent import (
    AgentSpec,
    ContextPolicy,
    Definition,
    Limits,
    Reminders,
    Subagents,
    define,
)
from perdure.core.budget import Budget, check_budget
from perdure.core.durability import rung
from perdure.core.errors import InvalidInput
from perdure.core.limits import (
    REMIND_MS_MIN,
    REMINDERS_MAX,
    RESTARTS_MAX,
    WAIT_SECONDS_MAX,
    WINDOW_MESSAGES_MAX,
)
from perdure.core.references import MODEL, check_credentials
from perdure.core.template import differences, read_template, tool_differences
from perdure.worker.builtin import ask_human, launch_agent, list_agents, wait
from perdure.worker.tool import Tool, strings, tool

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BUILTINS = (wait, ask_human, launch_agent, list_agents)
RESERVED = frozenset(each.spec.name for each in _BUILTINS)
_CHOICES = {"on_failure": ("retry", "stop"), "resume": ("eager", "lazy")}
_LIMITS = Limits()
_CONTEXT = ContextPolicy()
_SUBAGENTS = Subagents()


class Agent:
    """An agent as its author writes it: data for the runtime, code for the worker.

    `model` is a name (`anthropic:claude-sonnet-5`, `openai:gpt-5`), an object with an
    async `reply(request, on_text)`, or a function from a `ModelRequest` to a `ModelReply` or text.
    `tools` are tools or plain functions; a plain function is a tool with an undeclared effect.
    `model_timeout` is how long one reply may take, in seconds; None leaves it to the worker.
    `credentials` says where secrets are, never what they are: `{"model": "env:TEAM_KEY", "stripe":
    "file:/run/secrets/stripe"}`. `model` is the key of the model's provider; the other names are
    those that tools declare. `durability` is what a store has to give for this agent to run on it:
    `memory`, `os`, `fsynced` or `replicated(n)`. `grants` are the capabilities that its tools may
    need: `net.http`, or `net.*` for all that begin so. `purpose` is what other agents are told that
    it is for, and `subagents` which of them it may launch. `reminders` says how often people are
    told again what a run asks them, as in `Reminders(after_ms=3_600_000, times=3)`. `budget` is
    what each of its runs may spend before somebody is asked for more.

    Raises `InvalidInput` that names what is wrong and what was expected.
    """

    def __init__(
        self,
        name: str,
        *,
        model: Any,
        instructions: str = "",
        tools: Iterable[Tool[..., Any] | Callable[..., Any]] = (),
        limits: Limits = _LIMITS,
        context: ContextPolicy = _CONTEXT,
        on_failure: str = "retry",
        resume: str = "eager",
        max_tokens: int | None = None,
        model_timeout: float | None = None,
        credentials: Mapping[str, str] | None = None,
        durability: str | None = None,
        grants: Iterable[str] = (),
        purpose: str = "",
        subagents: Subagents = _SUBAGENTS,
        reminders: Reminders | None = None,
        budget: Budget | None = None,
    ) -> None:
        where = f"agent {_checked_name(name)!r}"
        self.name = name
        self.model = model
        _check_timeout(model_timeout, where)
        self.tools = _tools(tools, where)
        self.tools_by_name = {each.spec.name: each for each in self.tools}
        fields = {
            "name": name,
            "model": _model_name(model, where),
            "instructions": instructions,
            "tools": [each.spec for each in self.tools],
            "limits": limits,
            "context": context,
            "on_failure": on_failure,
            "resume": resume,
            "max_tokens": max_tokens,
            "model_timeout_ms": model_timeout and max(1, round(model_timeout * 1000)),
            "credentials": dict(credentials) if isinstance(credentials, Mapping) else credentials,
            "durability": _durability(durability, where),
            "grants": strings(grants, where, "grants"),
            "purpose": purpose,
            "subagents": subagents,
            "reminders": reminders,
            "budget": budget,
        }
        if credentials is None:
            del fields["credentials"]
        else:
            check_credentials(fields["credentials"], where)
        self.spec = _spec(fields, where)
        _check_ranges(self.spec, where)
        _check_reminders(self.spec.reminders, where)
        _check_declared(self.spec, where)

    @classmethod
    def rebuilt(
        cls,
        template: AgentSpec | bytes,
        *,
        tools: Iterable[Tool[..., Any] | Callable[..., Any]] = (),
        model: Any = None,
    ) -> Agent:
        """Return the agent that a template describes, from the code that there is here.

        `template` is what `Node.template` gives. `tools` are the functions of its tools; others may
        be among them. `model` is needed where its model is code. The agent is the same in every
        field: raises `InvalidInput` that names every part that is missing or different here.
        """
        spec = read_template(template) if isinstance(template, bytes) else template
        where = f"agent {spec.name!r}"
        here = {each.spec.name: each for each in (*_BUILTINS, *_tools(tools, where))}
        wrong: list[str] = []
        for wanted in spec.tools:
            found = here.get(wanted.name)
            wrong += tool_differences(wanted, found.spec if found is not None else None)
        own: Any = spec.model
        if is_code(spec.model):
            own = model
            name = None if model is None else _model_name(model, where)
            if name != spec.model:
                wrong.append(f"model is {name!r}, and should be {spec.model!r}")
        if wrong:
            raise InvalidInput(f"{where} cannot be rebuilt here: {'; '.join(wrong)}")
        made = cls(
            spec.name,
            model=own,
            instructions=spec.instructions,
            tools=[here[wanted.name] for wanted in spec.tools],
            limits=spec.limits,
            context=spec.context,
            on_failure=spec.on_failure,
            resume=spec.resume,
            max_tokens=spec.max_tokens,
            model_timeout=spec.model_timeout_ms and spec.model_timeout_ms / 1000,
            credentials=spec.credentials,
            durability=spec.durability,
            grants=spec.grants,
            purpose=spec.purpose,
            subagents=spec.subagents,
            reminders=spec.reminders,
            budget=spec.budget,
        )
        if made.spec != spec:
            said = "; ".join(differences(spec, made.spec))
            raise InvalidInput(f"{where} cannot be rebuilt here: {said}")
        return made

    @cached_property
    def definition(self) -> Definition:
        """The specification with the content addresses of its parts."""
        return define(self.spec)

    def with_model(self, model: Any) -> Agent:
        """Return the same agent with another model; code that plays it needs no key."""
        credentials = dict(self.spec.credentials)
        if not isinstance(model, str):
            credentials.pop(MODEL, None)
        return Agent(
            self.name,
            model=model,
            instructions=self.spec.instructions,
            tools=self.tools,
            limits=self.spec.limits,
            context=self.spec.context,
            on_failure=self.spec.on_failure,
            resume=self.spec.resume,
            max_tokens=self.spec.max_tokens,
            model_timeout=self.model_timeout,
            credentials=credentials,
            durability=self.spec.durability,
            grants=self.spec.grants,
            purpose=self.spec.purpose,
            subagents=self.spec.subagents,
            reminders=self.spec.reminders,
            budget=self.spec.budget,
        )

    @property
    def model_timeout(self) -> float | None:
        """How long one reply may take, in seconds; None leaves it to the worker."""
        limit_ms = self.spec.model_timeout_ms
        return None if limit_ms is None else limit_ms / 1000

    def __repr__(self) -> str:
        return f"<Agent {self.name} ({self.spec.model}, {len(self.tools)} tools)>"


def _checked_name(name: Any) -> Any:
    if not NAME_PATTERN.fullmatch(name if isinstance(name, str) else ""):
        raise InvalidInput(
            f"{name!r} cannot be the name of an agent: use 1 to 64 letters, digits, `.`, `_` "
            "and `-`, beginning with a letter or a digit"
        )
    return name


def _tools(given: Any, where: str) -> tuple[Tool[..., Any], ...]:
    if isinstance(given, Tool) or not isinstance(given, Iterable):
        raise InvalidInput(f"{where}: tools is a list of tools, not {given!r}")
    made: dict[str, Tool[..., Any]] = {}
    for each in given:
        if not isinstance(each, Tool) and not inspect.isroutine(each):
            raise InvalidInput(f"{where}: {each!r} is neither a tool nor a function")
        one = tool(each)
        name = one.spec.name
        if name in made:
            raise InvalidInput(f"{where} has two tools called {name!r}: give one tool(name=...)")
        if name in RESERVED and one.spec.builtin is None:
            raise InvalidInput(
                f"{where}: {name!r} is the name of a tool of the runtime: use perdure's, or "
                "another name"
            )
        made[name] = one
    return tuple(made.values())


_CODE = ("function:", "object:")


def _model_name(model: Any, where: str) -> str:
    """Return how the specification names a model; code is named by where it was written."""
    if isinstance(model, str) and model and not any(map(str.isspace, model)):
        return model
    if inspect.isroutine(model):
        return f"{_CODE[0]}{model.__qualname__}"
    if not isinstance(model, type) and callable(getattr(model, "reply", None)):
        return f"{_CODE[1]}{type(model).__qualname__}"
    raise InvalidInput(
        f"{where}: model is a name as in 'anthropic:claude-sonnet-5', an object with an async "
        f"`reply`, or a function of a request, not {model!r}"
    )


def is_code(model: str) -> bool:
    """Say whether a model's name in a specification stands for code of its worker."""
    return model.startswith(_CODE)


def _spec(fields: dict[str, Any], where: str) -> AgentSpec:
    for field, choices in _CHOICES.items():
        if fields[field] not in choices:
            raise InvalidInput(f"{where}: {field} is one of {choices}, not {fields[field]!r}")
    kinds = (
        ("limits", Limits),
        ("context", ContextPolicy),
        ("subagents", Subagents),
        ("budget", Budget),
    )
    for field, kind in kinds:
        if not isinstance(fields[field], kind) and (field, fields[field]) != ("budget", None):
            raise InvalidInput(f"{where}: {field} is {kind.__name__}(...), not {fields[field]!r}")
    if not isinstance(fields["reminders"], Reminders | None):
        raise InvalidInput(f"{where}: reminders is Reminders(...), not {fields['reminders']!r}")
    try:
        return msgspec.convert(msgspec.to_builtins(fields, enc_hook=repr), AgentSpec)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{where}: {error}") from None


def _check_ranges(spec: AgentSpec, where: str) -> None:
    window_max = WINDOW_MESSAGES_MAX
    for name, value, most in (
        ("limits.steps_max", spec.limits.steps_max, None),
        ("limits.tokens_max", spec.limits.tokens_max, None),
        ("limits.wall_ms_max", spec.limits.wall_ms_max, None),
        ("context.window_messages", spec.context.window_messages, window_max),
        ("context.compact_at_tokens", spec.context.compact_at_tokens, None),
        ("context.keep_messages", spec.context.keep_messages, window_max),
        ("max_tokens", spec.max_tokens, None),
        ("subagents.depth_max", spec.subagents.depth_max, None),
        ("subagents.children_max", spec.subagents.children_max, None),
        ("subagents.restarts_max", spec.subagents.restarts_max, RESTARTS_MAX),
        ("subagents.restart_window_ms", spec.subagents.restart_window_ms, None),
    ):
        if value is not None and (value < 1 or (most is not None and value > most)):
            to = f"between 1 and {most}" if most is not None else "at least 1"
            raise InvalidInput(f"{where}: {name} is {to}, not {value}")


def _check_reminders(reminders: Reminders | None, where: str) -> None:
    if reminders is None:
        return
    for name, value, least, most in (
        ("after_ms", reminders.after_ms, REMIND_MS_MIN, WAIT_SECONDS_MAX * 1000),
        ("times", reminders.times, 1, REMINDERS_MAX),
    ):
        if not least <= value <= most:
            to = f"between {least} and {most}"
            raise InvalidInput(f"{where}: reminders.{name} is {to}, not {value}")


def _check_timeout(seconds: Any, where: str) -> None:
    if seconds is not None and not (
        isinstance(seconds, (int, float)) and 0 < seconds < float("inf")
    ):
        raise InvalidInput(f"{where}: model_timeout is a number of seconds, not {seconds!r}")


def _durability(wanted: Any, where: str) -> str | None:
    """Return what a store has to give, checked. Raises `InvalidInput`."""
    if wanted is not None:
        try:
            rung(wanted)
        except (InvalidInput, TypeError):
            raise InvalidInput(
                f"{where}: durability is memory, os, fsynced or replicated(n), not {wanted!r}"
            ) from None
    found: str | None = wanted
    return found


def _check_declared(spec: AgentSpec, where: str) -> None:
    """Check that the credentials and tools that are named are there, and the model takes a key."""
    for each in spec.tools:
        for name in each.credentials:
            if name not in spec.credentials:
                raise InvalidInput(
                    f"{where}: tool {each.name!r} needs the credential {name!r}: say where it is, "
                    f"as in credentials={{{name!r}: 'env:...'}}"
                )
    if spec.budget is not None:
        countable = [each.name for each in spec.tools if each.builtin is None]
        check_budget(spec.budget, countable, where)
    if MODEL in spec.credentials and is_code(spec.model):
        raise InvalidInput(
            f"{where}: credentials[{MODEL!r}] is the key of a named model, and this one is code"
        )
