"""Commands out of the table of operations: what the REST API takes become arguments and options.

A command is a `Verb`: the name of an operation, and how its answer is shown. What a request holds
is read off its shape, so that a new field only needs a word of explanation in `WORDS`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click
import msgspec
from msgspec import inspect

from perdure.api.limits import PAGE_ITEMS_MAX
from perdure.api.operations import BY_ID, Operation
from perdure.cli.access import access, key_option, url_option
from perdure.cli.common import command_body, json_option
from perdure.cli.output import Output, short
from perdure.core.errors import InvalidInput

CELL_CHARS_MAX = 60
VALUE_CHARS_MAX = 200
MADE = 201
FIELD = "field_"
"""What the names of options of a request begin with, so that they meet no other option."""
WORDS: Mapping[str, str] = {
    "agent_id": "The agent, by its name or number.",
    "archived": "Those that are archived.",
    "capabilities": "What a worker with it may do; may be given twice.",
    "roles": "What whoever approves calls with it is, as in finance; repeatable.",
    "catch_up": "Make up for one missed time after a pause.",
    "conversation_key": "The session to send to; without it each message gets its own.",
    "conversation_key_path": "Where the session's key is in what is posted, as a.b.c.",
    "cron": "When: minute, hour, day, month, weekday, as '0 9 * * 1-5'.",
    "enabled": "Whether it does anything.",
    "events": "What it is told of, may be given several times; without it of everything.",
    "expires_in_s": "How long it is good for, in seconds; without it for ever.",
    "force": "Go ahead although a run is in progress.",
    "gard_id": "The gard that a worker with it is bound to.",
    "limit": "At most so many.",
    "max_steps": "How many steps a run may take.",
    "message": "What is sent.",
    "message_path": "Where the message is in what is posted, as a.b.c; else all of it.",
    "metadata": "Anything, as a JSON object.",
    "model": "The model, as its workers know it.",
    "model_config": "Settings of the model, as a JSON object.",
    "name": "Its name.",
    "purpose": "What it is for, in a line.",
    "scope": "What it may do.",
    "signature_type": "Who signs what is posted.",
    "signing_secret": "The secret of the signature; - reads it from the standard input.",
    "status": "How it stands.",
    "subagents": "Also those that agents began.",
    "system_prompt": "What the model is told first.",
    "template": "What it was made from.",
    "time_zone": "Where the clock of the cron expression hangs, as Europe/Berlin.",
    "title": "A title.",
    "tools_config": "Which tools it may use, as a JSON object.",
    "url": "Where it is told: an http or https URL of a public address.",
}
SPELT: Mapping[str, str] = {"agent_id": "agent", "url": "to"}
"""Options that are not called as their field: `--url` is the server."""
SECRETS = ("key", "token", "path", "claim_token", "signing_secret")
"""Fields of what was just made that are told only then."""

EMPTY: tuple[Any, ...] = (None, "", [], (), {})
_TIME = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)\.\d{6}Z$")


class Verb(NamedTuple):
    """A command that carries out one operation.

    `columns` are the fields that a list shows, `gives` those of the body that the verb itself
    says, `done` a sentence where the answer says nothing, `example` what follows in an example.
    """

    name: str
    operation: str
    example: str = ""
    columns: tuple[str, ...] = ()
    gives: Mapping[str, Any] = {}
    done: str = ""
    help: str = ""


def noun(name: str, help: str, verbs: Sequence[Verb]) -> click.Group:
    """Return a group with a command for each verb."""
    group = click.Group(name, help=help)
    for verb in verbs:
        group.add_command(command(name, verb))
    return group


def command(noun: str, verb: Verb) -> click.Command:
    """Return the command that carries out an operation on a server."""
    operation = BY_ID[verb.operation]

    @click.pass_context
    @url_option
    @key_option
    @json_option
    @command_body
    async def body(
        context: click.Context, url: str | None, key: str | None, as_json: bool, **given: Any
    ) -> None:
        server, output = access(url, key), Output(as_json)
        async with server.client() as client:
            await _carry_out(client, operation, verb, given, output)

    made = click.command(
        verb.name,
        help=f"{verb.help or operation.summary}.",
        epilog=f"Example: perdure {noun} {verb.name} {verb.example}".rstrip(),
    )(body)
    made.params[:0] = _parameters(operation, verb)
    return made


# ------------------------------------------------------------------------- what a command takes


def _parameters(operation: Operation, verb: Verb) -> Iterator[click.Parameter]:
    if "node" in operation.path_parameters:
        yield click.Argument(["node"], metavar="NODE")
    if "id" in operation.path_parameters:
        about_agent = operation.tag == "agents"
        kind: Any = str if about_agent else int
        yield click.Argument(["id"], type=kind, metavar="AGENT" if about_agent else "ID")
    for shape in () if verb.gives else (operation.query, operation.body):
        for field in _fields(shape):
            if field.name != "after":
                yield _parameter(field, is_change="PATCH" in operation.methods)


def _fields(shape: Any) -> Sequence[inspect.Field]:
    found = inspect.type_info(shape) if shape is not None else None
    return found.fields if isinstance(found, inspect.StructType) else ()


def _parameter(field: inspect.Field, is_change: bool) -> click.Parameter:
    """Return the argument or option that gives a field of a request."""
    if field.name == "name" and field.required:
        return click.Argument(["name"])
    kind, empties = _kind(field.type)
    option = SPELT.get(field.name, field.name)
    spelt = f"--{option.replace('_', '-')}"
    more: dict[str, Any] = {"help": WORDS[field.name], "required": field.required, "default": None}
    if is_change and empties:
        more["help"] = f"{more['help'].removesuffix('.')}; '' takes it away."
    if isinstance(kind, inspect.BoolType):
        spelt = f"{spelt}/--no-{option.replace('_', '-')}" if field.default is not False else spelt
        if field.default is False:
            more["is_flag"] = True
    elif isinstance(kind, inspect.LiteralType):
        more["type"] = click.Choice([str(value) for value in kind.values])
    elif isinstance(kind, inspect.VarTupleType) and isinstance(kind.item_type, inspect.LiteralType):
        more["type"] = click.Choice([str(value) for value in kind.item_type.values])
        more["multiple"] = True
    elif isinstance(kind, inspect.IntType) and field.name != "agent_id":
        more["type"] = click.IntRange(kind.ge)
    elif isinstance(kind, inspect.DictType):
        more["callback"], more["metavar"] = _json_object, "JSON"
    return click.Option([spelt, f"{FIELD}{field.name}"], **more)


def _kind(type_: inspect.Type) -> tuple[inspect.Type, bool]:
    """Return a type without the ways to say nothing, and whether null is one of them."""
    if not isinstance(type_, inspect.UnionType):
        return type_, False
    [kind] = [one for one in type_.types if not isinstance(one, inspect.NoneType)]
    return kind, True


def _json_object(context: click.Context, option: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{text!r} is JSON, but not an object: {{...}}")
    return found


# ------------------------------------------------------------------------------ what it does


async def _carry_out(
    client: Any, operation: Operation, verb: Verb, given: dict[str, Any], output: Output
) -> None:
    path = {"node": given.pop("node")} if "node" in given else {}
    if "id" in given:
        path["id"] = id_ = given.pop("id")
        if operation.tag == "agents":
            path["id"] = await agent_id(client, id_)
    told = {
        name.removeprefix(FIELD): value
        for name, value in given.items()
        if value is not None and value != ()
    }
    if told.get("agent_id"):
        told["agent_id"] = await agent_id(client, told["agent_id"])
    if verb.columns:
        items = [
            item
            async for item in pages(client, operation.id, told.pop("limit", None), path, **told)
        ]
        await show_list(output, items, verb.columns, client)
        return
    request: dict[str, Any] = {}
    if operation.body is not None:
        request["body"] = {**_body(operation, told), **verb.gives}
        if not request["body"] and "PATCH" in operation.methods:
            raise InvalidInput("there is nothing to change: give an option, see --help")
    elif operation.query is not None:
        request["query"] = operation.query(**told)
    if operation.idempotent:
        request["idempotency_key"] = _fresh_key()
    answer = await client.call(operation.id, **request, **path)
    _show(output, answer, path, verb)
    if operation.status == MADE:
        secrets = " and the ".join(name for name in SECRETS if getattr(answer, name, None))
        if secrets:
            output.say(f"\nKeep the {secrets}: shown this once.")


def _body(operation: Operation, told: dict[str, Any]) -> dict[str, Any]:
    """Return a body: an empty text takes away what may be taken away."""
    may_be_null = {field.name for field in _fields(operation.body) if _kind(field.type)[1]}
    body = {
        name: None if value == "" and name in may_be_null else value for name, value in told.items()
    }
    if body.get("signing_secret") == "-":
        body["signing_secret"] = _secret()
    return body


def _secret() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("signing secret", hide_input=True, err=True))
    return sys.stdin.readline().strip()


def _fresh_key() -> str:
    from perdure.client.dialogues import fresh_key

    return fresh_key()


async def agent_id(client: Any, agent: str) -> int:
    """Return the number of an agent that is named by it, or by its name. Raises `NotFound`."""
    return int(agent) if agent.isdecimal() else int((await client.agent(agent)).id)


async def pages(
    client: Any,
    operation: str,
    limit: int | None,
    path: Mapping[str, int] | None = None,
    **asked: Any,
) -> Any:
    """Yield the items of a list, page by page, at most `limit`."""
    query: Any = BY_ID[operation].query
    if query is None:
        for item in (await client.call(operation)).data[:limit]:
            yield item
        return
    left, after = limit, ""
    while left is None or left > 0:
        part = PAGE_ITEMS_MAX if left is None else min(left, PAGE_ITEMS_MAX)
        request = query(limit=part, after=after, **asked)
        page = await client.call(operation, query=request, **(path or {}))
        for item in page.data:
            yield item
        if not page.next:
            return
        left, after = (None if left is None else left - len(page.data)), page.next


# ------------------------------------------------------------------------------ what it shows


async def show_list(
    output: Output, items: Sequence[Any], columns: Sequence[str], client: Any
) -> None:
    """Print items: a table of some of their fields, or each whole as JSON.

    A column `agent` has the names that the server at `client` has for their agents.
    """
    every = [msgspec.to_builtins(item) for item in items]
    if output.as_json:
        for fields in every:
            output.record(fields, "")
        return
    if not every:
        output.say("There are none.")
        return
    names = {}
    if "agent" in columns:
        names = {agent.id: agent.name for agent in await client.agents()}
    rows = [
        [
            _cell({"agent": names.get(fields.get("agent_id")), **fields}.get(name))
            for name in columns
        ]
        for fields in every
    ]
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    output.say(click.style(_line(columns, widths), dim=True))
    for row in rows:
        output.say(_line(row, widths))


def lines_of(fields: Mapping[str, Any]) -> list[str]:
    """Return what is known of a thing, a line for each field; several things take several lines."""
    shown = {name: value for name, value in fields.items() if value not in EMPTY}
    width = max(len(name) for name in shown)
    lines = []
    for name, value in shown.items():
        are_things = isinstance(value, list | tuple) and isinstance(value[0], dict)
        first, *more = value if are_things else [value]
        lines.append(f"{name:<{width}}  {short(first, VALUE_CHARS_MAX)}")
        lines += [f"{'':<{width}}  {short(one, VALUE_CHARS_MAX)}" for one in more]
    return lines


def _show(output: Output, answer: Any, path: Mapping[str, Any], verb: Verb) -> None:
    fields = {**path, "done": verb.name} if answer is None else msgspec.to_builtins(answer)
    if verb.done:
        output.record(fields, verb.done.format(**fields))
        return
    output.record(fields, "\n".join(lines_of(fields)))


def _cell(value: Any) -> str:
    if value in EMPTY:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        value = ",".join(str(one) for one in value)
    return short(_TIME.sub(r"\1 \2Z", str(value)), CELL_CHARS_MAX)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
