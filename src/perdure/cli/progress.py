"""Following a run on a terminal: events as they become durable, questions as they are asked."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Self

import click
import msgspec

from perdure.bootstrap import Node, RecordedEvent, Run, TextDelta
from perdure.cli.events import event_fields, event_line
from perdure.cli.output import Output, marked, plain, short, timestamp
from perdure.core import events as e
from perdure.core.prices import money
from perdure.core.runs import RunRow

PARKED = 9
FAILED = 4
CANCELLED = 5
INTERRUPTED = 130
FOR_A_PERSON = frozenset({"answer", "decision", "approval", "budget", "release"})
ASKING = (e.QuestionAsked, e.DecisionRequested, e.ApprovalRequested, e.BudgetExceeded)
TERMINAL_EXITS = {"completed": 0, "failed": FAILED, "cancelled": CANCELLED}


@contextmanager
def on_interrupt(callback: Callable[[], None]) -> Any:
    """Call back at Ctrl-C or SIGTERM instead of raising."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def follow(node: Node, run: Run, output: Output, after: int = 0) -> int:
    """Print a run's progress until it ends, is parked on a person, or is interrupted.

    Returns the exit code. On a terminal, questions are answered right here.
    """
    stopped = asyncio.Event()
    with on_interrupt(stopped.set):
        watching = asyncio.ensure_future(_watch(node, run, output, after))
        stopping = asyncio.ensure_future(stopped.wait())
        await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not watching.done():
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            _tell_how_to_resume(run, output)
            return INTERRUPTED
        return watching.result()


async def _watch(node: Node, run: Run, output: Output, after: int) -> int:
    """Watch a run and all that it launches: one that waits for a person parks them all."""
    parked = asyncio.Event()
    async with _Watchers() as watchers:

        async def look(child: str) -> None:
            below = await node.run(child)
            if await _watch_one(node, below, output, _unseen(below), launched):
                parked.set()

        def launched(child: str) -> None:
            watchers.add(look(child))

        items = _items(run, output, after)
        whole = watchers.add(_watch_one(node, run, output, items, launched))
        stopping = watchers.add(parked.wait())
        await asyncio.wait((whole, stopping), return_when=asyncio.FIRST_COMPLETED)
        if parked.is_set() or whole.result():
            return PARKED
        return await finish(run, output)


class _Watchers:
    """Tasks that are cancelled when nobody needs them any more."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Future[Any]] = []

    def add(self, work: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
        """Begin something."""
        self._tasks.append(asyncio.ensure_future(work))
        return self._tasks[-1]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _unseen(run: Run) -> AsyncIterator[RecordedEvent]:
    async for item in run.stream(0, text=False):
        if not isinstance(item, TextDelta):
            yield item


async def _watch_one(
    node: Node,
    run: Run,
    output: Output,
    items: AsyncIterator[RecordedEvent],
    launched: Callable[[str], None],
) -> bool:
    """Watch one run; say whether it waits for a person who says nothing."""
    async for item in items:
        if isinstance(item.event, e.LettersDelivered):
            for letter in item.event.letters:
                if letter.startswith("start:"):
                    launched(letter.removeprefix("start:"))
        if not isinstance(item.event, ASKING):
            continue
        if item.event.call not in {wait["call"] for wait in (await run.row()).waiting_for}:
            continue
        asked = item.event.question if isinstance(item.event, e.QuestionAsked) else None
        answer = None if asked is None else await answer_here(asked, output)
        if not answer:
            await _parked(run, output)
            return True
        await node.reply(run.id, answer, call=item.event.call, by="terminal")
    return False


async def _items(run: Run, output: Output, after: int) -> AsyncIterator[RecordedEvent]:
    writing = False
    async for item in run.stream(after, text=not output.as_json):
        if isinstance(item, TextDelta):
            click.echo(click.style(plain(item.text), dim=True), nl=False)
            writing = True
            continue
        if writing:
            click.echo()
            writing = False
        output.record(event_fields(item), event_line(item))
        yield item


async def answer_here(question: str, output: Output) -> str | None:
    """Ask whoever sits at the terminal; None if nobody does, or wants to say nothing."""
    if not is_at_terminal(output):
        return None
    click.echo(f"\n{plain(question)}")
    click.echo("> ", nl=False)
    return await _read_line() or None


def is_at_terminal(output: Output) -> bool:
    """Say whether somebody sits there who can be asked."""
    return not output.as_json and sys.stdin.isatty() and sys.stdout.isatty()


async def _read_line() -> str:
    """Read a line from the terminal; can be cancelled, which a thread that reads cannot."""
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        if not line.done():
            line.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin.fileno(), read)
    try:
        return (await line).strip()
    finally:
        loop.remove_reader(sys.stdin.fileno())


async def _parked(run: Run, output: Output) -> None:
    row = await run.row()
    output.say(f"\nThe run waits for a person. {describe_waiting(row.id, row.waiting_for)}")
    if output.as_json:
        output.record(row_fields(row), "")


def describe_waiting(
    run: str | int,
    waits: Iterable[Mapping[str, Any]],
    option: str = "",
    session: str | int | None = None,
) -> str:
    """Return what a run waits for, and the command that gives it, with this option.

    What a person has to do comes first. `session` is how a command names the run's session.
    """
    known = "SESSION" if session is None else session
    told = sorted(waits, key=lambda wait: wait["what"] not in FOR_A_PERSON)
    return "\n".join(_wait_in_words(run, wait, option, known) for wait in told)


def _wait_in_words(run: str | int, wait: Mapping[str, Any], option: str, session: str | int) -> str:
    match wait["what"]:
        case "answer":
            return f"{plain(wait['question'])}\n  perdure runs reply {run} 'ANSWER'{option}"
        case "decision":
            return (
                f"Did {wait['tool']} (key {wait['key']}) take effect?\n"
                f"  perdure runs resolve {run} {wait['call']} --attempt {wait['attempt']} "
                f"happened|did-not-happen|tell-model{option}"
            )
        case "approval":
            return (
                f"{asks_approval(wait)}\n"
                f"  perdure approvals approve|deny {run} {wait['call']}{option}"
            )
        case "budget":
            return f"{asks_budget(wait)}\n  perdure budget raise|deny {run}{option}"
        case "release":
            return (
                f"Its session is in quarantine: {plain(wait['needs'])}\n"
                f"  perdure sessions release {session}{option}"
            )
        case "worker":
            return (
                f"Call {wait['call']} waits for {plain(wait['needs'])}: one that was cut off may "
                f"come back with it, else start one\n  perdure worker FILE.py:NAME{option}"
            )
        case "time":
            return f"Call {wait['call']} waits until {_due(wait['due_at'])}, and goes on by itself"
        case "retry":
            return f"A model call failed; it is made again by itself at {_due(wait['due_at'])}"
        case "child":
            child = wait.get("run_id", wait.get("run"))
            return f"It waits for {plain(wait['agent'])}\n  perdure runs show {child}{option}"
        case other:
            return f"Call {wait['call']} waits: {plain(other)}"


def asks_approval(wait: Mapping[str, Any]) -> str:
    """Return in a sentence what a call wants to do that waits for approval."""
    asked = wait.get("approval") or wait
    arguments = asked.get("arguments")
    shown = "..." if arguments is None else marked(msgspec.json.encode(arguments).decode())
    why = f": {plain(asked['reason'])}" if asked.get("reason") else ""
    return f"May {asked['tool']} be called with {shown}? (rule {plain(asked['rule'])}{why})"


def asks_budget(wait: Mapping[str, Any]) -> str:
    """Return in a sentence what a run's budget lacks."""
    needed, left, what = wait["needed"], wait["left"], wait["short_of"]
    match what:
        case "cost":
            needs = f"the next call may cost {money(needed)} USD, and {money(left)} is left"
        case "wall":
            needs = "its time is over"
        case "calls":
            needs = f"there is no call of {plain(wait.get('tool', 'the tool'))} left"
        case "unpriced":
            needs = "the price of its model is not known"
        case "unbounded":
            needs = "nobody knows how long a reply of its model can be: it needs max_tokens"
        case _:
            needs = f"the next call may take {needed} {plain(what)}, and {left} are left"
    return f"The budget does not suffice: {needs}."


def _due(at: str | int | None) -> str:
    """Return a time as people read it: of a store it is in milliseconds since 1970, of a server
    a timestamp.
    """
    text = at if isinstance(at, str) else timestamp(at)
    return "an unknown time" if text is None else f"{text[:10]} {text[11:19]}Z"


async def finish(run: Run, output: Output) -> int:
    """Print how a run ended; return the exit code."""
    ended = await run.ended()
    row = ended.row
    if row.status == "completed":
        text = ended.content if isinstance(ended.content, str) else short(ended.content, 10_000)
        output.record({**row_fields(row), "output": ended.content}, f"\n{plain_lines(text)}")
    else:
        output.record(row_fields(row), f"\nThe run is {row.status}: {plain(row.message)}")
        if row.status == "failed":
            output.say(f"Go on where it stopped with: perdure runs retry {row.id}")
    return TERMINAL_EXITS.get(row.status, 0)


def plain_lines(text: str) -> str:
    """Return text of several lines without control characters."""
    return "\n".join(plain(line) for line in text.split("\n"))


def row_fields(row: RunRow) -> dict[str, Any]:
    """Return a run's row as the stable JSON object that `--json` prints."""
    return {
        "run": row.id,
        "agent": row.session.agent,
        "session": row.session.key,
        "status": row.status,
        "created_at": timestamp(row.created_at),
        "ended_at": timestamp(row.ended_at),
        "steps": row.steps,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "merged_into": row.merged_into,
        "error_class": row.error_class,
        "code": row.code,
        "message": row.message,
        "waiting_for": list(row.waiting_for),
        "purse": None if row.purse is None else msgspec.to_builtins(row.purse),
    }


def _tell_how_to_resume(run: Run, output: Output) -> None:
    output.say(f"\nStopped. Nothing is lost; go on with: perdure resume {run.id}")
    if output.as_json:
        output.record({"run": run.id, "status": "stopped"}, "")
