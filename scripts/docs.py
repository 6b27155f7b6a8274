"""Write the pages that come out of the code: `make docs`. A test compares them with what is there.

A page that a person would have to keep in step with a table is printed from the table instead.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from inspect import getdoc
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import click
import msgspec

import perdure
from perdure import Tool, client, testing
from perdure.api import shapes
from perdure.api.operations import OPERATIONS, Operation
from perdure.api.timeline import BECOMES
from perdure.bootstrap import Node
from perdure.cli import common, progress
from perdure.cli.main import main as command_line
from perdure.cli.refusals import MEANS
from perdure.client import dialogues
from perdure.core import limits
from perdure.core.errors import PerdureError
from perdure.core.events import EVENT_TYPES
from perdure.core.retry import DELAY_MS_MAX, POLICY
from perdure.core.runs import RunRow
from perdure.core.transitions import CALL, SESSION
from perdure.ports import faults, telemetry
from perdure.runtime.followers import Ended
from perdure.runtime.settings import NodeSettings
from perdure.runtime.tenancy import Tenancy

ROOT: Final = Path(__file__).parents[1]
GENERATED: Final = "<!-- Written by `make docs`; change the code, not this page. -->"
EVENTS_HEAD: Final = f"""# Events

{GENERATED}

What can stand in a session's log. An event is stored as the JSON of the fields below, with its type
under `type`; a field that has its default is left out. Every event also has `at`, the time at which
it was recorded, in milliseconds since 1970 (UTC)."""
STATES_HEAD: Final = f"""# States

{GENERATED}

Printed from the two tables in `src/perdure/core/transitions.py`. What has no arrow cannot happen:
the event is refused with an error, and nothing is written."""


API_HEAD: Final = f"""# Python API

{GENERATED}

What `from perdure import ...` gives, and what `perdure.testing` adds for tests. Every other name
may change without notice."""
CLI_HEAD: Final = f"""# Command line

{GENERATED}

How to use it: [the command line](../howto/command-line.md). Every command prints help with
`--help`."""
SETTINGS_HEAD: Final = f"""# Settings

{GENERATED}

How a node behaves: `Runtime(..., settings=NodeSettings(linger_ms=0))`. The defaults suit one
process on one machine. What belongs to an agent (its limits, its context policy) is in the
[Python API](api.md)."""
REST_HEAD: Final = f"""# REST API

{GENERATED}

JSON in, JSON out, under `Authorization: Bearer KEY`. An answer that is a list or an object is under
`data`. An error is `{{"error": "a sentence"}}`, or with 422
`{{"error": {{"field": ["what was expected"]}}}}`. Shapes are in `/openapi.json`. How to use it:
[run a server](../howto/server.md)."""
CLIENT_HEAD: Final = f"""# Python client

{GENERATED}

What `from perdure.client import ...` gives. How to use it:
[run a server](../howto/server.md#from-a-program)."""
EVENT_NAMES_SAID: Final = """\
What `GET /api/v1/runs/{id}/events` calls the [facts of the log](events.md). `sequence` counts the
events of one run from 1, `seq` those of a whole session. A run's first message is its `input`, and
why a model call failed is said by the `retry` or `run_failed` after it. `tool_duplicate` comes only
where a worker had a result from an earlier attempt."""
OPERATIONS_SAID: Final = """\
What `call` takes. Query and body are classes of `perdure.api.shapes`; what an operation does and
may answer is in the [REST API](rest.md)."""
LIMITS_HEAD: Final = f"""# Limits and retries

{GENERATED}

Every limit of the core is a constant in `src/perdure/core/limits.py`, with its unit in its name. An
error that comes of one names it and its value. They are not settings. What a run may spend is
declared with its agent: `Limits` in the [Python API](api.md)."""
FAULTS_HEAD: Final = f"""# Fault points

{GENERATED}

Named places in product code at which a test may let the process die; in production they do nothing.
How to use them: [test your agent](../howto/test-your-agent.md)."""
TELEMETRY_HEAD: Final = f"""# Telemetry

{GENERATED}

What the runtime tells about itself. By default each fact is one line of Python's logging, under the
logger `perdure`: its name, then its fields as JSON; at level WARNING if something went wrong, else
at DEBUG. An object with `emit(name, **fields)`, handed to `Runtime(..., telemetry=...)`, gets them
instead. No payload is ever among the fields."""

SETTINGS_SAID: Final = {
    "lease_ms": "How long a node may write its sessions without renewing its lease. It renews three"
    " times in that time.",
    "scan_interval_ms": "How often, at the latest, the node looks for sessions that are due; 1,000 "
    "by default where there are other nodes.",
    "scan_batch_sessions": "How many sessions one scan takes at most.",
    "prefer_ms": "How long a due session is left to the node that should take it, where there are "
    "several.",
    "activations_max": "How many sessions are being claimed and loaded at once, at most.",
    "linger_ms": "How long a session with nothing to do stays loaded.",
    "strikes_max": "How often in a row a session's host may die without any progress of that "
    "session, before it is put in quarantine; 30 on a server, which executes nothing.",
    "probation_ms": "How long a session that may be what killed its host runs before the next such "
    "one is claimed",
    "drain_ms": "How long a drain waits for `once` calls that have begun.",
    "read_batch_records": "How many events one read of the store returns at most.",
    "prices": "What models cost: `DEFAULT_PRICES.with_overrides(...)` of `perdure.api.cost`.",
}
ENVIRONMENT_SAID: Final = {
    "PERDURE_STORE": "The store of the command line and of servers, where `--store` is not given.",
    "ANTHROPIC_API_KEY": "The key for `anthropic:` models (or ANTHROPIC_AUTH_TOKEN).",
    "ANTHROPIC_BASE_URL": "Another address for `anthropic:` models.",
    "OPENAI_API_KEY": "The key for `openai:` and `openai-responses:` models.",
    "OPENAI_BASE_URL": "Another address for `openai:` models; it may do without a key.",
    "PERDURE_FOLDER": "Where a server keeps everything, where `--folder` is not given.",
    "PERDURE_PRICES": "A file with prices of models, for a server and the command line; see "
    "[budgets](../howto/budgets.md#prices).",
    "PERDURE_URL": "The server of the command line, where `--url` is not given.",
    "PERDURE_KEY": "The API key of the command line, where `--key` is not given.",
    "PERDURE_CLAIM_TOKEN": "What `perdure worker --gard` claims its gard with.",
    "PERDURE_MODEL": "The model of the examples and of what `perdure new` made: `provider:model`.",
    "PERDURE_BOOTSTRAP_KEY": "A key that becomes an admin's when a server starts; 16 to 256 chars.",
    "PERDURE_KEY_PEPPER": "What a server hashes keys with, instead of a file beside its catalog. "
    "Servers that share a catalog need it, and the same.",
    "PERDURE_CATALOG": "Where a server's agents and keys are, where `--catalog` is not given: a "
    "URL.",
    "PERDURE_CLUSTER": "Where servers hear of each other, where `--cluster` is not given: a URL.",
    "PERDURE_NAME": "What other servers call this one, where `--name` is not given.",
    "PERDURE_POLICY": "The rules of `run` and `dev`, where `--policy` is not given.",
    "PERDURE_ADVERTISE": "The URL by which others reach it, where `--advertise` is not given.",
    "PERDURE_WEBHOOK_NETWORKS": "Networks besides public ones where webhooks may go: 10.1.0.0/16.",
    "PERDURE_WEBHOOK_PORTS": "The ports of webhooks that go out, or `*`; 80 and 443 if not given.",
    "PERDURE_ISOLATED_TOOL": "Set by perdure in an isolated tool's process: no runtime starts.",
    "PERDURE_FAULTS": "A fault plan, in processes that ask for it: see the fault points.",
    "PERDURE_FAULTS_FD": "Where such a process tells that it holds still.",
    "PERDURE_BREAK": "Set by `--break` in the processes of a demonstration: the mutant they are.",
    "PERDURE_LEDGER": "Set by `perdure demo kill-me`: where its ledger listens.",
    "PERDURE_WORLD": "Set by `perdure demo kill-me`: the file of its ledger.",
}
RETRIES_SAID: Final = f"""\
What kind of failure it was decides whether the model is asked again, and when. A delay is an event
of the log and outlives every process. A provider's own Retry-After wins when it is longer; no delay
is longer than {DELAY_MS_MAX // 60_000} minutes. Every other failure ends the run at once. With
`on_failure="stop"` the first failure ends the run, whatever it was."""
LIMITS_SAID: Final = {
    "MESSAGE_BYTES_MAX": "A message, as JSON. `send` raises `LimitExceeded`.",
    "FORK_BYTES_MAX": "The history that a fork begins with, as JSON; `fork` raises as well.",
    "REPLY_BYTES_MAX": "A model's reply, as JSON. The run fails with `reply_too_large`.",
    "ARGUMENT_BYTES_MAX": "The arguments of a tool call. The call is denied and the model told.",
    "RESULT_BYTES_MAX": "A tool's result, as JSON. The model is told that the tool ran, and sees"
    " the beginning.",
    "ERROR_CHARS_MAX": "An error's text; the rest is cut off.",
    "TOOL_CALLS_PER_STEP_MAX": "Tool calls in one reply. The others are denied.",
    "ATTEMPTS_PER_TOOL_CALL_MAX": "How often one tool call is sent. After that it has failed.",
    "APPROVERS_MAX": "people whose approval a call may need",
    "ROLES_MAX": "roles of which one is needed to approve a call",
    "DECIDED_MAX": "decisions on approvals that a session remembers, for those who come late",
    "RESTARTS_MAX": "The largest `restarts_max` of sub-agents.",
    "REMINDERS_MAX": "how often people are reminded of one thing, at most",
    "REMIND_MS_MIN": "the shortest time between two reminders",
    "USES_MAX": "standing approvals whose uses a session counts; others with a limit do not apply",
    "DOUBTS_MAX": "calls of unknown outcome; from then on none is made that may change something",
    "WINDOW_MESSAGES_MAX": "The largest `window_messages` and `keep_messages` of a context policy.",
    "WAIT_SECONDS_MAX": "The longest `wait`.",
    "INBOX_ENTRIES_MAX": "Commands that wait in one session. `send` raises `LimitExceeded`.",
    "BLOB_THRESHOLD_BYTES": "A payload larger than this is kept by its content, compressed.",
    "SNAPSHOT_EVERY_EVENTS": "A snapshot is kept this often, so that loading a session reads"
    " only the tail of its log.",
    "JSON_DEPTH_MAX": "How deeply messages, replies, arguments and results may be nested.",
    "STRIKES_MAX": "How often in a row a session's host may die without any progress of that"
    " session. Then it is put in quarantine.",
}
CLIENT_SHAPES: Final = (
    shapes.Agent,
    shapes.AgentCreate,
    shapes.Event,
    shapes.MessageContext,
    shapes.Question,
    shapes.Run,
    shapes.Session,
    shapes.SessionWhole,
    shapes.StandingApproval,
    shapes.Wait,
)
OPERATION_HEAD: Final = ("operation", "path", "query", "body", "answer")
HANDED_OUT: Final = {"Node": Node, "RunRow": RunRow, "Ended": Ended}
MADE_FOR_YOU: Final = {
    *("Node", "Refused", "Run", "RunFailed", "Tool"),
    *("ApiError", "AsyncRunHandle", "RunHandle", "RunWaits"),
}
"""Classes whose objects are handed out: how they are made is nobody's concern."""
FOR_HANDLES: Final = {"start", "stop", "answer_of", "check", "check_session"}
"""Methods of `Node` that `Runtime` and `Run` call for their users."""


def pages() -> dict[Path, str]:
    """Return every generated page: where it stands -> its text."""
    reference = ROOT / "docs" / "reference"
    return {
        reference / "api.md": _api(),
        reference / "cli.md": _cli(),
        reference / "client.md": _client(),
        reference / "events.md": _events(),
        reference / "faults.md": _faults(),
        reference / "limits.md": _limits(),
        reference / "rest.md": _rest(),
        reference / "settings.md": _settings(),
        reference / "telemetry.md": _telemetry(),
        ROOT / "docs" / "internals" / "states.md": _states(),
    }


def _page(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines += [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ------------------------------------------------------------------------------------ REST API


def _rest() -> str:
    parts = [REST_HEAD]
    nouns: dict[str, list[Operation]] = {}
    for operation in OPERATIONS:
        nouns.setdefault(operation.tag, []).append(operation)
    for noun, operations in nouns.items():
        parts.append(f"## {noun}")
        parts.append(
            _table(
                ("request", "what it does", "key", "answers"),
                (
                    (
                        f"`{' '.join(one.methods)} {one.path}`",
                        one.summary,
                        one.scope or "none",
                        ", ".join(str(status) for status in (one.status, *one.errors())),
                    )
                    for one in operations
                ),
            )
        )
    parts += [
        "## Names of events",
        EVENT_NAMES_SAID,
        _table(
            ("in the log", "over REST"),
            (
                (f"`{name}`", ", ".join(f"`{one}`" for one in BECOMES[event].becomes) or "-")
                for name, event in EVENT_TYPES.items()
            ),
        ),
    ]
    return _page(*parts)


def _client() -> str:
    parts = [CLIENT_HEAD, "## Without an event loop"]
    for thing in (client.Client, client.RunHandle):
        parts += _entry(thing.__name__, thing)
    parts.append("## With an event loop")
    for thing in (client.AsyncClient, client.AsyncRunHandle):
        parts += _entry(thing.__name__, thing)
    parts.append("## What they give and take")
    for name in ("Mode", "Resolution"):
        parts.append(f"`{name}` is {_spell(getattr(dialogues, name))}.")
    parts += _entry("TextDelta", client.TextDelta)
    for shape in CLIENT_SHAPES:
        parts += _entry(shape.__name__, shape)
    parts.append("## Errors")
    for thing in (client.ApiError, client.RunWaits, client.Unreachable):
        parts += _entry(thing.__name__, thing)
    parts += ["## Operations", OPERATIONS_SAID, _table(OPERATION_HEAD, _operations())]
    return _page(*parts)


def _operations() -> Iterator[tuple[str, ...]]:
    for one in OPERATIONS:
        if one.scope is not None:
            taken = (
                _python(kind) if isinstance(kind, type) else "" for kind in (one.query, one.body)
            )
            path = ", ".join(f"`{name}`" for name in one.path_parameters)
            yield f"`{one.id}`", path, *taken, "" if one.answer is None else _python(one.answer)


# ---------------------------------------------------------------------------------- Python API


def _api() -> str:
    parts = [API_HEAD, "## perdure"]
    named = {name: getattr(perdure, name) for name in perdure.__all__}
    errors = {name: thing for name, thing in named.items() if _is_error(thing)}
    for name in sorted(named.keys() - errors.keys(), key=_alphabetically):
        parts += _entry(name, named[name])
    parts += ["## Handed out", "What you are given; there is nothing to import."]
    for name, thing in HANDED_OUT.items():
        parts += _entry(name, thing)
    parts.append("## Errors")
    for name in sorted(errors):
        parts += _entry(name, errors[name])
    parts.append("## perdure.testing")
    for name in sorted(testing.__all__, key=_alphabetically):
        parts += _entry(name, getattr(testing, name))
    return _page(*parts)


def _alphabetically(name: str) -> tuple[str, str]:
    return name.lower(), name


def _is_error(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, PerdureError)


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"### `{name}`"
    if isinstance(thing, Tool):
        yield f"A tool. {thing.spec.description}"
        properties = thing.spec.parameters["properties"]
        yield _table(
            ("argument", "meaning"),
            ((f"`{key}`", field.get("description", "")) for key, field in properties.items()),
        )
        return
    made = not isinstance(thing, type) or "__init__" in vars(thing)
    if made and name not in MADE_FOR_YOU:
        yield _signature(name, thing)
    yield getdoc(thing) or ""
    if _is_struct(thing):
        yield _fields(thing)
    if isinstance(thing, type):
        bases = [base for base in thing.__mro__ if base is thing or base is Tenancy]
        members = {key: value for base in bases for key, value in vars(base).items()}
        for member, method in members.items():
            if thing is Node and member in FOR_HANDLES:
                continue
            if callable(method) and not member.startswith("_"):
                yield f"#### `{name}.{member}`"
                yield _signature(member, method)
                yield getdoc(method) or ""


def _is_struct(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, msgspec.Struct)


def _fields(struct: type[msgspec.Struct]) -> str:
    kinds = get_type_hints(struct)  # without the bounds of their values, which the REST API tells
    rows = [
        (
            f"`{field.name}`",
            _python(kinds[field.name]),
            "required" if field.required else _value(field),
        )
        for field in msgspec.structs.fields(struct)
    ]
    return _table(("field", "type", "default"), rows)


def _python(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    text = re.sub(r"(?:[a-z_]+[.])+(?=[A-Za-z])", "", text)
    return "`" + re.sub(r"Optional\[([^]]+)]", r"\1 | None", text) + "`"


def _value(field: Any) -> str:
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory()
    return f"`{value!r}`"


def _signature(name: str, thing: Any) -> str:
    signature = inspect.signature(thing)
    given: list[str] = []
    for each in signature.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not any(one.startswith("*") for one in given):
            given.append("*")
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        text = f"{stars}{each.name}"
        if each.annotation is not each.empty:
            text += f": {_annotation(each.annotation)}"
        if each.default is not each.empty:
            text += f" = {each.default!r}"
        given.append(f"{text}, /" if each.kind is each.POSITIONAL_ONLY else text)
    lead = f"{'await ' if inspect.iscoroutinefunction(thing) else ''}{name}"
    returned = signature.return_annotation
    end = "" if returned in (signature.empty, None, "None") else f" -> {_annotation(returned)}"
    line = f"{lead}({', '.join(given)}){end}"
    if len(line) > 90:
        line = f"{lead}(\n    " + ",\n    ".join(given) + f",\n){end}"
    return f"```text\n{line}\n```"


def _annotation(annotation: Any) -> str:
    if not isinstance(annotation, str):
        return _python(annotation).strip("`")
    return re.sub(r"\b[a-z]\.(?=[A-Z])", "", annotation)


# -------------------------------------------------------------------------------- command line


def _cli() -> str:
    codes = _exit_codes()
    parts = [CLI_HEAD, "## Exit codes", _table(("code", "when"), codes)]
    for path, command in _commands("perdure", command_line):
        context = click.Context(command, info_name=path, terminal_width=200)
        parts.append(f"## `{path}`")
        parts.append(_help(command.help or ""))
        if isinstance(command, click.Group):
            inside = ", ".join(f"`{each}`" for each in command.list_commands(context))
            parts.append(f"Commands: {inside}.")
            continue
        parts.append(f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```")
        options = [each for each in command.params if isinstance(each, click.Option)]
        rows = [(_spelt(each), each.help or "", _default_of(each)) for each in options]
        if rows:
            parts.append(_table(("option", "meaning", "default"), rows))
        if command.epilog:
            parts.append(f"```sh\n{command.epilog.removeprefix('Example: ')}\n```")
    return _page(*parts)


def _help(text: str) -> str:
    """Return a help text as Markdown; what click would not wrap is a block of its own."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        f"```sh\n{inspect.cleandoc(one.removeprefix(chr(8)))}\n```" if one.startswith("\b") else one
        for one in paragraphs
    )


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inside in command.commands.items():
            yield from _commands(f"{path} {name}", inside)


def _spelt(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return f"`{option.opts[0]} {'/'.join(option.type.choices)}`"
    return f"`{option.opts[0]}`" if option.is_flag else f"`{option.opts[0]} {_kind(option)}`"


def _kind(option: click.Option) -> str:
    return (option.metavar or option.name or "").upper()


def _default_of(option: click.Option) -> str:
    default = option.to_info_dict()["default"]
    shown = f"`{default}`" if isinstance(default, (str, int)) and not option.is_flag else ""
    return f"{shown} or ${option.envvar}" if option.envvar else shown


def _exit_codes() -> list[tuple[str, str]]:
    said = {
        0: "All went well. Of a run that was followed: it completed.",
        common.OTHER_ERROR: "Any other error. `doctor`, `demo`, `policy test`, `policy prove`: "
        "a check failed.",
        progress.PARKED: "The run waits for a person; it was told what to do.",
        common.INTERRUPTED: "Ctrl-C or SIGTERM. Nothing is lost: `perdure resume` goes on.",
    }
    for kind, code in common.EXIT_CODES:
        first = (getdoc(kind) or "").split(";")[0].split(":")[0].rstrip(".")
        more = f"`{kind.__name__}`: {first[0].lower()}{first[1:]}."
        if statuses := [str(status) for status, means in MEANS.items() if means is kind]:
            more += f" A server answered {', '.join(statuses)}."
        said[code] = f"{said[code]} {more}" if code in said else more
    return [(f"`{code}`", said[code]) for code in sorted(said)]


# ------------------------------------------------------------------- settings, limits, telemetry


def _settings() -> str:
    rows = [
        (f"`{field.name}`", _setting(field.default), SETTINGS_SAID[field.name])
        for field in msgspec.structs.fields(NodeSettings)
    ]
    environment = [(f"`{name}`", text) for name, text in ENVIRONMENT_SAID.items()]
    return _page(
        SETTINGS_HEAD,
        _table(("setting", "default", "meaning"), rows),
        "## Environment variables",
        _table(("variable", "meaning"), environment),
    )


def _setting(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"those of {value.as_of}"


def _limits() -> str:
    named = {name: value for name, value in vars(limits).items() if name.isupper()}
    retries = [
        (f"`{error_class}`", f"`{code}`", rule.retries_max, _delays(rule))
        for (error_class, code), rule in POLICY.items()
    ]
    return _page(
        LIMITS_HEAD,
        _table(
            ("limit", "value", "of what, and what happens"),
            ((f"`{name}`", f"{value:,}", LIMITS_SAID[name]) for name, value in named.items()),
        ),
        "## Retries of model calls",
        RETRIES_SAID,
        _table(("class", "code", "retries", "delays in seconds"), retries),
    )


def _delays(rule: Any) -> str:
    growing = rule.growth == "linear"
    factors = [n + 1 if growing else 2**n for n in range(rule.retries_max)]
    times = [f"{rule.base_ms * factor / 1000:g}" for factor in factors]
    return ", ".join(times if len(times) <= 4 else [*times[:3], "…", times[-1]])


def _faults() -> str:
    return _page(
        FAULTS_HEAD,
        _table(("point", "what is true there"), ((f"`{k}`", v) for k, v in faults.SITES.items())),
    )


def _telemetry() -> str:
    table = (getdoc(telemetry) or "").partition("\n\n")[2]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    warnings = importlib.import_module("perdure.adapters.telemetry.logs").WARNINGS
    return _page(
        TELEMETRY_HEAD,
        _table(
            ("fact", "fields", "when", "level"),
            (
                (f"`{name}`", fields, when, "WARNING" if name in warnings else "DEBUG")
                for name, fields, when in rows
            ),
        ),
    )


# ------------------------------------------------------------------------------ events, states


def _events() -> str:
    parts = [EVENTS_HEAD]
    for name, event in EVENT_TYPES.items():
        parts += [f"## `{name}`", getdoc(event) or ""]
        fields = [field for field in msgspec.structs.fields(event) if field.name != "at"]
        if fields:
            rows = [f"| `{f.encode_name}` | {_spell(f.type)} | {_default(f)} |" for f in fields]
            parts.append("\n".join(["| field | type | default |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _default(field: Any) -> str:
    if field.required:
        return "required"
    if field.default is msgspec.NODEFAULT:
        return f"`{msgspec.json.encode(field.default_factory()).decode()}`"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def _spell(kind: Any) -> str:
    """Return a type as a reader of JSON would name it."""
    plain = {str: "string", int: "integer", float: "number", bool: "boolean", Any: "any JSON"}
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is None or kind is types.NoneType:
        return "null"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is types.UnionType or str(origin) == "typing.Union":
        return " or ".join(_spell(argument) for argument in arguments)
    if origin in {list, tuple, frozenset}:
        return f"list of {_spell(arguments[0])}"
    if origin in {dict, Mapping} or kind is dict:
        return "object"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        inside = ", ".join(f.encode_name for f in msgspec.structs.fields(kind))
        return f"object ({inside})"
    return plain.get(kind, str(kind))


def _states() -> str:
    parts = [STATES_HEAD, "## A session", _diagram(SESSION), "## A call", _diagram(CALL)]
    return "\n\n".join(parts) + "\n"


def _diagram(table: Mapping[str, Mapping[str, str]]) -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR"]
    for status, row in table.items():
        by_next: dict[str, list[str]] = {}
        for event, following in row.items():
            by_next.setdefault(following, []).append(event)
        for following, events in by_next.items():
            lines.append(f"    {status} --> {following} : {'<br/>'.join(events)}")
    return "\n".join([*lines, "```"])


def main() -> None:
    """Write every page that differs, and say which."""
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
