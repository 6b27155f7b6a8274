"""`perdure policy`: try out what a policy says before it is in force."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from perdure.api.shapes import PolicyUpdate
from perdure.bootstrap import SystemClock, policy_engine
from perdure.cli.access import access, server_options
from perdure.cli.common import blocking_body, command_body, json_option
from perdure.cli.loading import load_agent
from perdure.cli.output import Output, plain, short, timestamp
from perdure.core.agent import AgentSpec, ToolSpec
from perdure.core.errors import InvalidInput
from perdure.core.gate import Asked, Terms, Verdict
from perdure.core.limits import too_deep
from perdure.policy.cases import Case, ms, read_cases, request
from perdure.policy.compare import changed_rules, compare
from perdure.policy.explain import Reading, explain
from perdure.policy.policy import Policy
from perdure.policy.review import review

FAILED = 1
DEFAULT_TENANT = "default"

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
file_argument = click.argument("file", type=_FILE)
agents_option = click.option(
    "--agent",
    "agents",
    multiple=True,
    metavar="FILE:NAME",
    help="An agent that the policy is for; may be given several times.",
)
agent_option = click.option(
    "--agent", required=True, metavar="FILE:NAME", help="The agent that calls."
)


@click.group()
def policy() -> None:
    """Try out a policy: is it valid, what does it say and why, what would change."""


@policy.command(epilog="Example: perdure policy check policy.toml --agent agents.py:support")
@file_argument
@agents_option
@json_option
@blocking_body
def check(file: Path, agents: tuple[str, ...], as_json: bool) -> None:
    """Check a policy: valid, or what is wrong and on which line.

    It warns of rules that can never match and, for the agents that are given, of rules that speak
    of no tool of theirs, of capabilities that nobody grants, and of arguments that a tool has not.
    """
    output = Output(as_json)
    read = _read(file)
    rules = len(read.document.rule)
    warnings = review(read, _specs(agents))
    output.record(
        {"name": read.name, "version": read.version, "rules": rules, "warnings": warnings},
        f"valid  {read.name}, version {read.version}, {rules} rules",
    )
    for warning in warnings:
        output.say(f"warning: {plain(warning)}")


@policy.command(
    "explain",
    epilog="Example: perdure policy explain policy.toml --agent agents.py:support --tool refund "
    """--arguments '{"cents": 1999}'""",
)
@file_argument
@agent_option
@click.option("--tool", required=True, help="The tool that it calls.")
@click.option("--arguments", default="{}", help="The arguments of the call, a JSON object.")
@click.option("--at", metavar="TIME", help="When, as 2026-01-05T09:30:00Z; without it now.")
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="The tenant.")
@json_option
@blocking_body
def explain_(
    file: Path, agent: str, tool: str, arguments: str, at: str | None, tenant: str, as_json: bool
) -> None:
    """Show the verdict on a call, and of every rule which of its conditions did not hold."""
    output = Output(as_json)
    spec = load_agent(agent)[0].spec
    when = SystemClock().now_ms() if at is None else _time(at)
    asked = Asked(tenant, spec, _tool(spec, tool), _arguments(arguments), when)
    found = explain(_read(file), asked)
    fields = msgspec.to_builtins(found)
    output.record(fields, "\n".join(_explained(found.verdict, found.needs, found.ungranted)))
    output.say("")
    for line in _table(("rule", "verdict", "holds", ""), map(_row, found.rules)):
        output.say(line)


@policy.command(epilog="Example: perdure policy test policy.toml cases.toml")
@file_argument
@click.argument("cases", type=_FILE)
@agents_option
@json_option
@blocking_body
def test(file: Path, cases: Path, agents: tuple[str, ...], as_json: bool) -> int:
    """Judge the calls in a file of cases; exit with 1 if a verdict is not the expected one."""
    output = Output(as_json)
    read = _read(file)
    rows, failures = [], 0
    for case, asked in _requests(cases, agents):
        verdict = read.judge(asked)
        passed = case.passes(verdict)
        failures += not passed
        name = case.name or _call(asked)
        wanted = f"{case.expect} ({case.rule})" if case.rule else case.expect
        got = f"{verdict.effect} ({verdict.rule})"
        if as_json:
            fields = {"case": name, "ok": passed, "expected": wanted, "found": got}
            output.record({**fields, "reason": verdict.reason}, "")
        rows.append(("ok" if passed else "FAILED", name, wanted, got))
    for line in _table(("", "case", "expected", "found"), rows):
        output.say(line)
    output.say(f"{len(rows)} cases, {failures} failed")
    return FAILED if failures else 0


@policy.command(epilog="Example: perdure policy diff old.toml new.toml")
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@click.option("--cases", type=_FILE, help="Calls to be judged besides those that are made up.")
@agents_option
@json_option
@blocking_body
def diff(old: Path, new: Path, cases: Path | None, agents: tuple[str, ...], as_json: bool) -> None:
    """Show which rules differ, and which verdicts, with an example of each.

    The calls are made up from the constants in both policies: around each rule, and where two
    rules meet. That is no proof that nothing else changes.
    """
    output = Output(as_json)
    before, after = _read(old), _read(new)
    also = [asked for _, asked in _requests(cases, agents)] if cases else []
    rules, found = changed_rules(before, after), compare(before, after, also)
    for how, names in (("removed", rules.removed), ("added", rules.added)):
        for name in names:
            output.record({"rule": name, "change": how}, f"rule {name} {how}")
    for name, keys in rules.changed.items():
        said = f"rule {name} changed: {', '.join(keys)}"
        output.record({"rule": name, "change": "changed", "keys": keys}, said)
    if rules.default:
        default = after.document.default
        output.record({"default": default}, f"default changed: {default}")
    for change in found.changes:
        fields: dict[str, Any] = {
            "old": msgspec.to_builtins(change.old),
            "new": msgspec.to_builtins(change.new),
            "calls": change.calls,
            "example": _as_fields(change.example),
        }
        was, now = _in_words(change.old), _in_words(change.new)
        output.record(fields, f"{was} -> {now}: {change.calls} calls, as {_said(change.example)}")
    output.say(f"{found.calls} calls judged, {len(found.changes)} changes of verdicts")


@policy.command(
    epilog='Example: perdure policy prove policy.toml --agent agents.py:support "never refund"'
)
@file_argument
@agent_option
@click.argument("claim")
@json_option
@blocking_body
def prove(file: Path, agent: str, claim: str, as_json: bool) -> int:
    """Prove that an agent can never call a tool, or show a call that it may make.

    CLAIM is "never TOOL". Exits with 0 if it is true: of no arguments, at no time, for no tenant is
    a call allowed, nor asked about. Exits with 1 if not, with a call that was judged once more. It
    needs Z3: pip install 'perdure[prove]'.
    """
    output = Output(as_json)
    word, _, name = claim.partition(" ")
    if word != "never" or not name.strip():
        raise InvalidInput(f'a claim is "never TOOL", not {claim!r}')
    spec, reference = load_agent(agent)
    tool = _tool(spec.spec, name.strip())
    way = policy_engine("prover").find(_read(file), spec.spec, tool)
    who = f"agent {spec.name!r}"
    if way is None:
        output.record({"never": True}, f"never: {who} cannot call {tool.name!r}, whatever it says")
        return 0
    asked, verdict = way.asked, way.verdict
    fields = {"never": False, "verdict": verdict.effect, "rule": verdict.rule}
    how = "without asking" if verdict.effect == "allow" else "after asking"
    output.record(
        {**fields, "example": _as_fields(asked)},
        f"not never: {who} may call {tool.name!r} {how}, by {verdict.rule}: {_said(asked)}",
    )
    options = f"--arguments '{_json(asked.arguments)}' --at {timestamp(asked.at)}"
    output.say(
        f"see: perdure policy explain {file} --agent {reference} --tool {tool.name} {options} "
        f"--tenant '{plain(asked.tenant)}'"
    )
    return FAILED


# ------------------------------------------------------------------------------------------ input


@policy.command(epilog="Example: perdure policy put policy.toml --url http://server:4000")
@file_argument
@server_options
@json_option
@command_body
async def put(file: Path, url: str | None, key: str | None, as_json: bool) -> None:
    """Put a policy in force on a server, from the next call on; needs an admin's key."""
    output = Output(as_json)
    read = await asyncio.to_thread(_read, file)
    body = PolicyUpdate(policy=msgspec.json.decode(read.body))
    async with access(url, key).client() as client:
        told = await client.call("update_policy", body=body)
    output.record(msgspec.to_builtins(told), f"version {told.version} is in force")


@policy.command(epilog="Example: perdure policy show --url http://server:4000")
@server_options
@json_option
@command_body
async def show(url: str | None, key: str | None, as_json: bool) -> None:
    """Show the policy that is in force on a server."""
    output = Output(as_json)
    async with access(url, key).client() as client:
        told = await client.call("get_policy")
    rules = msgspec.json.format(msgspec.json.encode(told.policy)).decode()
    none = "There is no policy: what agents list and are granted is allowed."
    output.record(msgspec.to_builtins(told), rules if told.version else none)


@policy.command(epilog="Example: perdure policy remove --url http://server:4000")
@server_options
@json_option
@command_body
async def remove(url: str | None, key: str | None, as_json: bool) -> None:
    """Have no policy on a server: what agents list and are granted is allowed."""
    output = Output(as_json)
    async with access(url, key).client() as client:
        await client.call("delete_policy")
    output.record({"version": ""}, "there is no policy now")


def _read(file: Path) -> Policy:
    """Return the policy in a file: JSON if it is called so, else TOML. Raises `InvalidInput`."""
    if file.suffix == ".json":
        return Policy.from_json(file.read_bytes(), str(file))
    return Policy.from_toml(_text(file), str(file))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file}: expected text in UTF-8: {error}") from None


def _specs(agents: Iterable[str]) -> list[AgentSpec]:
    return [load_agent(reference)[0].spec for reference in agents]


def _tool(agent: AgentSpec, name: str) -> ToolSpec:
    tools = {tool.name: tool for tool in agent.tools}
    if name not in tools:
        listed = ", ".join(tools) or "none"
        raise InvalidInput(f"agent {agent.name!r} has no tool {name!r}; its tools are: {listed}")
    return tools[name]


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"--arguments: expected a JSON object: {error}") from None
    if not isinstance(value, dict) or too_deep(value):
        raise InvalidInput(f"--arguments: expected a JSON object, found {short(text)}")
    return value


def _time(text: str) -> int:
    try:
        return ms(datetime.fromisoformat(text))
    except ValueError:
        raise InvalidInput(
            f"--at: found {text!r}, expected a time as 2026-01-05T09:30:00Z"
        ) from None


def _requests(cases: Path, agents: Iterable[str]) -> Iterator[tuple[Case, Asked]]:
    given = {spec.name: spec for spec in _specs(agents)}
    for number, case in enumerate(read_cases(_text(cases), str(cases)), 1):
        try:
            asked = request(case, given)
        except InvalidInput as error:
            raise InvalidInput(f"{cases}: case {number}: {error}") from None
        yield case, asked


# ----------------------------------------------------------------------------------------- output


def _explained(
    verdict: Verdict, needs: tuple[str, ...], ungranted: tuple[str, ...]
) -> Iterator[str]:
    yield f"{verdict.effect}, by {verdict.rule}" + (f": {verdict.reason}" if verdict.reason else "")
    if verdict.effect == "ask":
        yield f"asks {_who(verdict.terms)}"
    if needs:
        lacking = f" (not granted to the agent: {', '.join(ungranted)})" if ungranted else ""
        yield f"needs {', '.join(needs)}{lacking}"


def _who(terms: Terms) -> str:
    people = "one person" if terms.needed == 1 else f"{terms.needed} people"
    roles = f" with the role {' or '.join(terms.roles)}" if terms.roles else ""
    later = ""
    if terms.escalate_ms is not None:
        others = " or ".join(terms.escalate_to)
        later = f"; after {terms.escalate_ms // 60_000} minutes those with the role {others}"
    return f"{people}{roles}, for {terms.expires_ms // 60_000} minutes{later}"


def _row(rule: Reading) -> tuple[str, ...]:
    said = "; ".join((*rule.failed, *rule.unjudged))
    return (rule.rule, rule.verdict, "yes" if rule.holds else "no", said)


def _in_words(verdict: Verdict) -> str:
    terms = f": {_who(verdict.terms)}" if verdict.effect == "ask" else ""
    return f"{verdict.effect} ({verdict.rule}{terms})"


def _call(asked: Asked) -> str:
    return f"{asked.tool.name} {_json(asked.arguments)}"


def _said(asked: Asked) -> str:
    """Return a made-up call in one line; what is as in every other is left out."""
    parts = [f"{short(_call(asked))} by {asked.agent.name!r}"]
    if asked.agent.grants != ("*",):
        parts.append(f"granted {', '.join(asked.agent.grants) or 'nothing'}")
    if asked.tool.capabilities:
        parts.append(f"needing {', '.join(asked.tool.capabilities)}")
    if asked.tenant != DEFAULT_TENANT:
        parts.append(f"for {asked.tenant!r}")
    return plain(f"{', '.join(parts)}, {asked.tool.effect}, at {timestamp(asked.at)}")


def _as_fields(asked: Asked) -> dict[str, Any]:
    return {
        "tenant": asked.tenant,
        "agent": asked.agent.name,
        "grants": asked.agent.grants,
        "tool": asked.tool.name,
        "effect": asked.tool.effect,
        "capabilities": asked.tool.capabilities,
        "arguments": asked.arguments,
        "at": timestamp(asked.at),
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Return lines whose columns stand below each other."""
    lines = [head, *(tuple(map(plain, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()
