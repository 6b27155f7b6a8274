"""Runs of a server on the command line: looked at, followed, and told something.

What `--json` prints here are the objects of the REST API.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import click
import msgspec

from perdure.api.limits import EVENTS_PAGE_ITEMS_MAX
from perdure.cli.access import Access
from perdure.cli.events import arguments_of, line
from perdure.cli.output import Output, plain, short
from perdure.cli.progress import (
    PARKED,
    TERMINAL_EXITS,
    answer_here,
    describe_waiting,
    plain_lines,
)
from perdure.cli.purse import described
from perdure.cli.verbs import agent_id, lines_of, pages, show_list
from perdure.core.errors import InvalidInput

if TYPE_CHECKING:
    from perdure.api.shapes import Event, Run
    from perdure.client import AsyncClient, AsyncRunHandle

ASKS = frozenset(
    {"waiting_for_user", "decision_requested", "approval_requested", "budget_exceeded"}
)
COLUMNS = ("id", "row_status", "inserted_at", "agent", "conversation_id", "trigger_type")
SHOWN_OTHERWISE = (
    "output", "waits", "waiting_for", "failure_inspector", "cost", "total_cost", "purse"
)  # fmt: skip


class Served:
    """The runs of a server, for one command. `option` is what names the server in a command."""

    def __init__(self, client: AsyncClient, output: Output, option: str) -> None:
        self.client = client
        self._output = output
        self._option = option

    def run(self, id_: str) -> AsyncRunHandle:
        """Return the run with this number."""
        if not id_.isdecimal():
            raise InvalidInput(f"{id_!r} is no run of a server: its runs have numbers")
        return self.client.run(int(id_))

    async def list_runs(
        self, status: str | None, agent: str | None, session: str | None, limit: int
    ) -> None:
        """List runs, newest first."""
        asked: dict[str, Any] = {}
        conversation = None
        if agent is not None:
            asked["agent_id"] = await agent_id(self.client, agent)
        if session is not None:
            if agent is None:
                raise InvalidInput("--session needs --agent: sessions are an agent's")
            path = {"id": asked["agent_id"], "key": session}
            conversation = (await self.client.call("get_conversation", **path)).id
        if status is not None:
            asked["status"] = status
        items: list[Run] = []
        async for item in pages(self.client, "list_runs", None, **asked):
            if status in (None, item.row_status) and conversation in (None, item.conversation_id):
                items.append(item)
            if len(items) == limit:
                break
        await show_list(self._output, items, COLUMNS, self.client)

    async def show(self, run: AsyncRunHandle) -> None:
        """Show where a run stands, what it waits for, and its answer."""
        found = await run.get()
        fields = msgspec.to_builtins(found)
        lines = lines_of(
            {name: value for name, value in fields.items() if name not in SHOWN_OTHERWISE}
            | {"cost_usd": found.cost.usd}
        )
        if "purse" in fields:
            lines.append(described(fields["purse"]))
        if found.waits:
            lines.append(self._waiting(found))
        if found.output is not None:
            lines.append("\n" + plain_lines(found.output))
        self._output.record(fields, "\n".join(lines))

    async def events(self, run: AsyncRunHandle, after: int = 0) -> None:
        """Print the events that there are."""
        for event in await self._told(run, after):
            self._output.record(msgspec.to_builtins(event), event_line(event))

    async def follow(self, run: AsyncRunHandle, after: int = 0) -> int:
        """Print a run's events until it ends or is parked on a person; return the exit code.

        On a terminal, questions are answered right here.
        """
        async with aclosing(self._items(run, after)) as items:
            async for event in items:
                if event.event_type not in ASKS:
                    continue
                call = event.payload["call"]
                if call not in {wait.call for wait in (await run.get()).waits}:
                    continue
                answer = None
                if event.event_type == "waiting_for_user":
                    answer = await answer_here(event.payload["question"], self._output)
                if not answer:
                    break
                await run.reply(answer, call=call)
        return self.finish(await run.wait())

    async def tell(
        self, run: AsyncRunHandle, tell: Callable[[], Awaitable[None]], is_followed: bool
    ) -> int:
        """Tell a run something, and follow what comes of it; return the exit code."""
        told = await self._told(run)
        await tell()
        return await self.follow(run, told[-1].sequence) if is_followed else 0

    def finish(self, run: Run) -> int:
        """Print how a run ended, or what it waits for; return the exit code."""
        told, outcome = msgspec.to_builtins(run), outcome_of(run)
        if outcome is None:
            self._output.record(told, f"\nThe run waits for a person. {self._waiting(run)}")
            return PARKED
        if outcome == "completed":
            self._output.record(told, f"\n{plain_lines(run.output or '')}")
        else:
            self._output.record(told, f"\nThe run is {outcome}: {plain(failure(run))}")
        if outcome == "failed":
            retry = f"perdure runs retry {run.id}{self._option}"
            self._output.say(f"Go on where it stopped with: {retry}")
        return TERMINAL_EXITS[outcome]

    def _waiting(self, run: Run) -> str:
        waits = msgspec.to_builtins(run.waits)
        return describe_waiting(run.id, waits, self._option, run.conversation_id)

    async def _told(self, run: AsyncRunHandle, after: int = 0) -> list[Event]:
        from perdure.api.shapes import EventQuery

        found: list[Event] = []
        while True:
            query = EventQuery(after=after, limit=EVENTS_PAGE_ITEMS_MAX)
            page = (await self.client.call("list_events", id=run.id, query=query)).data
            found += page
            if len(page) < EVENTS_PAGE_ITEMS_MAX:
                return found
            after = page[-1].sequence

    async def _items(self, run: AsyncRunHandle, after: int) -> AsyncGenerator[Event, None]:
        from perdure.client import TextDelta

        writing = False
        async with aclosing(run.stream(after)) as items:
            async for item in items:
                if isinstance(item, TextDelta):
                    if not self._output.as_json:
                        click.echo(click.style(plain_lines(item.text), dim=True), nl=False)
                        writing = True
                    continue
                if writing:
                    click.echo()
                    writing = False
                self._output.record(msgspec.to_builtins(item), event_line(item))
                yield item


@asynccontextmanager
async def served(server: Access, output: Output) -> AsyncIterator[Served]:
    """Open the runs of a server."""
    async with server.client() as client:
        yield Served(client, output, server.option)


def outcome_of(run: Run) -> str | None:
    """Return how a run ended; None if it has not."""
    if run.status == "failed":
        cancelled = run.failure_metadata.get("error_code") == "cancelled"
        return "cancelled" if cancelled else "failed"
    return "completed" if run.status == "completed" else None


def failure(run: Run) -> str:
    """Return why a run failed or was cancelled."""
    return str(run.failure_metadata.get("error", "without a word"))


def event_line(event: Event) -> str:
    """Return an event as a line for people, as wide as the terminal."""
    return line(event.sequence, event.inserted_at[11:23], event.event_type, gist(event))


def gist(event: Event) -> str:
    """Return what matters of an event in a few words."""
    told = event.payload
    match event.event_type:
        case "llm_request":
            return f"step {told['step']}, shown {told['message_count']} messages"
        case "llm_response":
            calls = ", ".join(
                f"{one['name']}({arguments_of(one['arguments'])})" for one in told["tool_calls"]
            )
            return calls or short(told["content"])
        case "tool_call":
            return f"{told['call']} {told['name']}({arguments_of(told['arguments'])})"
        case "tool_result":
            return f"{told['call']} {told['name']}: {short(told['content'])}"
        case "waiting_for_user" | "decision_requested":
            return f"{told['call']} {told['question']}"
        case "approval_requested":
            call = f"{told['call']} {told['name']}({arguments_of(told['arguments'])})"
            return f"{call} [{told['rule']}: {told['reason']}]"
        case "people_reminded":
            return f"{told['call']} {told['name']}: reminder {told['count']}"
        case "budget_exceeded":
            return f"{told['call']} lacks {told['short_of']}: {told['needed']} > {told['left']}"
        case "budget_raised":
            more = ("tokens", "cost_micros", "wall_ms", "calls")
            return ", ".join(f"{told[name]} {name}" for name in more if name in told)
        case "waiting_for_timer":
            return f"{told['call']} until {told['due_at'][:19]}Z"
        case "retry":
            again = f"attempt {told['attempt'] + 1} in {told['delay_ms'] / 1000:g} s"
            return f"{again}: {told['error']}"
        case "run_failed":
            return f"{told['error_class']}/{told['error_code']}: {told['error']}"
        case "run_completed":
            return short(told["output"])
    named = (told.get(name) for name in ("call", "name", "content", "error", "reason", "by"))
    return " ".join(short(part) for part in named if part)
