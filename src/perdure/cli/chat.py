"""`perdure chat`: a conversation with an agent of a server.

It needs no event loop: whoever types is asked in between, and Ctrl-C is a `KeyboardInterrupt`
wherever the program stands.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click
import msgspec

from perdure.cli.access import FOLDER, access, home_url, server_options
from perdure.cli.common import blocking_body
from perdure.cli.events import arguments_of
from perdure.cli.output import plain, short
from perdure.cli.progress import PARKED, describe_waiting, plain_lines
from perdure.core.errors import PerdureError

if TYPE_CHECKING:
    from perdure.api.shapes import Event, Run
    from perdure.client import Client, RunHandle, TextDelta

QUIET_SECONDS_MAX = 2.0
"""After so long a person is told if a run waits for a worker that is not there."""
NOT_FOUND, CONFLICT = 404, 409


@click.command(epilog="Example: perdure chat support --session slack:U01")
@click.argument("agent")
@click.option("--session", help="The session to talk in; without it a new one.")
@server_options
@blocking_body
def chat(agent: str, session: str | None, url: str | None, key: str | None) -> int:
    """Talk with AGENT of a server.

    Its text is shown as it is written, and its calls in a line each. What it asks is answered right
    here. Ctrl-C cancels the run, also at a question; a second one leaves, and so does the end of
    the input. The same --session goes on where it was left.
    """
    from perdure.client import Client

    with suppress(ImportError):
        import readline  # noqa: F401  it gives `input` its arrow keys

    server = access(url, key)
    with server.explaining(), Client(server.url, server.key) as client:
        found = client.agent(int(agent) if agent.isdecimal() else agent)
        talk = _Talk(client, found.id, session or f"chat-{uuid4().hex[:12]}", server.option)
        _note(f"{plain(found.name)} listens; Ctrl-C cancels what it does, Ctrl-D leaves")
        try:
            return talk.go_on(is_new=session is None)
        finally:
            again = f"perdure chat {plain(found.name)} --session {plain(talk.session)}"
            is_home = server.url == home_url(Path(FOLDER))
            _note(f"\ngo on with: {again}{'' if is_home else server.option}")


class Page:
    """What stands on the screen: text as it is written, each piece once, and lines between."""

    def __init__(self) -> None:
        self._is_awaited = False
        self._written = ""
        self._early = ""

    def awaits(self) -> None:
        """Note that a model was asked: what is written from now on is its reply."""
        self._is_awaited = True
        self.write("")

    def write(self, text: str) -> None:
        """Show a piece of a reply. It may be told before the request that it belongs to."""
        self._early += text
        if self._is_awaited:
            click.echo(plain_lines(self._early), nl=False)
            self._written += self._early
            self._early = ""

    def reply(self, content: Any) -> None:
        """Show what of a whole reply was not written already."""
        text = content if isinstance(content, str) else short(content, 10_000)
        written, self._written, self._is_awaited = self._written, "", False
        if text.startswith(written):
            text = text[len(written) :]
        elif written:
            click.echo()
        if text or written:
            click.echo(plain_lines(text))

    def line(self, text: str, *, is_aside: bool = False) -> None:
        """Show a line; a reply that was begun is not gone on with."""
        if self._written:
            click.echo()
            self._written = ""
        click.echo(click.style(f"  {text}", dim=True) if is_aside else text)


class _Talk:
    """A conversation: what of its runs was seen, and what is asked."""

    def __init__(self, client: Client, agent: int, session: str, option: str) -> None:
        self.session = session
        self._client = client
        self._agent = agent
        self._option = option
        self._seen: dict[int, int] = {}
        self._page = Page()
        self._is_parked = False
        self._is_asking = False
        # Once Ctrl-C has cancelled a run, the next one leaves.
        self._is_interrupted = False

    def go_on(self, is_new: bool) -> int:
        """Talk until there is no more input; return the exit code."""
        with suppress(EOFError):
            if not is_new and (run := self._unfinished()) is not None:
                self._follow(run)
            while True:
                said = _message(leaves_at_once=self._is_interrupted)
                self._follow(self._client.send(self._agent, said, session=self.session))
        return PARKED if self._is_parked else 0

    def _unfinished(self) -> RunHandle | None:
        """Return the run that is in progress in the session."""
        from perdure.client import ApiError
        from perdure.client.dialogues import is_over

        try:
            path: dict[str, Any] = {"id": self._agent, "key": self.session}
            conversation = self._client.call("get_conversation", **path)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return None
        run: Run | None = self._client.session(conversation.id).run
        return None if run is None or is_over(run) else self._client.run(run.id)

    def _follow(self, run: RunHandle) -> None:
        """Show a run to its end; the first Ctrl-C cancels it."""
        self._is_interrupted = False
        while True:
            try:
                self._show(run)
            except KeyboardInterrupt:
                if self._is_interrupted:
                    self._page.line(f"run {run.id} is being cancelled", is_aside=True)
                    raise
                self._is_interrupted = True
                self._cancel(run)
            else:
                return

    def _cancel(self, run: RunHandle) -> None:
        from perdure.client import ApiError

        unanswered = "no answer: " if self._is_asking else ""
        self._is_asking = False
        self._page.line(f"{unanswered}cancelling run {run.id}; Ctrl-C again leaves", is_aside=True)
        try:
            run.cancel("interrupted in a chat")
        except ApiError as error:
            if error.status != CONFLICT:
                raise

    # ------------------------------------------------------------------------- what is shown

    def _show(self, run: RunHandle) -> None:
        stream = run.stream(self._seen.get(run.id, 0))
        with self._explaining_quiet(run), closing(stream) as items:
            for item in items:
                self._take(run, item)

    def _take(self, run: RunHandle, item: Event | TextDelta) -> None:
        from perdure.client import TextDelta

        if isinstance(item, TextDelta):
            self._page.write(item.text)
            return
        self._seen[run.id] = item.sequence
        told = item.payload
        match item.event_type:
            case "llm_request":
                self._page.awaits()
            case "llm_response":
                self._page.reply(told["content"])
            case "tool_call" if told["name"] != "ask_human":
                self._page.line(f"{told['name']}({arguments_of(told['arguments'])})", is_aside=True)
            case "tool_result" if told["name"] != "ask_human":
                failed = " failed" if told["is_error"] else ""
                self._page.line(f"{told['name']}{failed}: {short(told['content'])}", is_aside=True)
            case "waiting_for_user":
                self._ask(run, told["call"], told["question"])
            case "decision_requested" | "approval_requested" | "budget_exceeded":
                self._page.line(self._waiting(run.get()))
            case "waiting_for_timer":
                self._page.line(f"until {told['due_at'][:19]}Z", is_aside=True)
            case "retry":
                again = f"again in {told['delay_ms'] / 1000:g} s"
                self._page.line(f"{again}: {short(told['error'])}", is_aside=True)
            case "run_failed":
                how = "cancelled" if told["error_code"] == "cancelled" else "failed"
                self._page.line(f"The run is {how}: {plain(told['error'])}")

    def _waiting(self, run: Run) -> str:
        waits = msgspec.to_builtins(run.waits)
        return describe_waiting(run.id, waits, self._option, run.conversation_id)

    @contextmanager
    def _explaining_quiet(self, run: RunHandle) -> Iterator[None]:
        def explain() -> None:
            with suppress(PerdureError):
                for wait in run.get().waits:
                    if wait.what == "worker":
                        _note(f"run {run.id} waits for a worker: {wait.needs}", always=True)

        timer = threading.Timer(QUIET_SECONDS_MAX, explain)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    # -------------------------------------------------------------------------- what is asked

    def _ask(self, run: RunHandle, call: str, question: str) -> None:
        """Ask what the agent asks, if nobody else has answered."""
        from perdure.client import ApiError

        found = run.get()
        if call not in {wait.call for wait in found.waits}:
            return
        self._page.line(plain_lines(question))
        self._is_asking = True
        try:
            answer = _read_something("? ")
        except EOFError:
            self._is_parked = True
            self._page.line(self._waiting(found))
            raise
        self._is_asking = False
        try:
            run.reply(answer, call=call)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            self._page.line("it was answered meanwhile", is_aside=True)


def _message(leaves_at_once: bool) -> str:
    """Return what is to be sent. Ctrl-C twice leaves, or once if it was pressed before."""
    try:
        return _read_something("> ")
    except KeyboardInterrupt:
        if leaves_at_once:
            raise
        _note("\nCtrl-C again leaves")
        return _read_something("> ")


def _read_something(prompt: str) -> str:
    """Return a line that is not blank; raise `EOFError` at the end of the input."""
    while True:
        if sys.stdin.isatty():
            line = input(prompt)
        elif not (line := sys.stdin.readline()):
            raise EOFError
        if line.strip():
            return line.strip()


def _note(text: str, *, always: bool = False) -> None:
    """Say something beside the conversation, to a person."""
    if always or sys.stdin.isatty():
        click.echo(click.style(text, dim=True), err=True)
