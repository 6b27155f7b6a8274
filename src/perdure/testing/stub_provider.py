"""A model provider on this machine: real HTTP, a script instead of a model, and bad days on order.

It speaks Anthropic Messages and OpenAI Chat Completions, streaming or not, so that whatever calls
a model can be tested against cut streams, 429s and nonsense, with every attempt counted where the
provider would bill it:

    with StubProvider(status(429, retry_after=2), cut(90), "Hello.") as stub:
        model = DirectModel("openai:any", base_url=stub.openai_url, api_key="any")

By itself (`python -m perdure.testing.stub_provider --port 8080`) it says back what it is told.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from types import TracebackType
from typing import Self

import msgspec
from msgspec.structs import replace

from perdure.core.messages import ModelReply, Usage
from perdure.testing.stub_formats import Format, body, error, objection, stream
from perdure.testing.stub_script import (
    Behaviour,
    Received,
    Script,
    behaviour,
    by_turn,
    cut,
    empty,
    garbage,
    hang,
    huge_arguments,
    loose_arguments,
    repeated_ids,
    status,
    thinks,
)

__all__ = [
    "Behaviour",
    "Received",
    "StubProvider",
    "by_turn",
    "cut",
    "empty",
    "garbage",
    "hang",
    "huge_arguments",
    "loose_arguments",
    "repeated_ids",
    "status",
    "thinks",
]

HEAD_BYTES_MAX = 64 * 1024
PATHS: Mapping[str, Format] = {"/messages": "anthropic", "/chat/completions": "openai"}
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}


class StubProvider:
    """The server, in a thread of its own. The n-th request gets the n-th item of the script.

    An item may be a function of the request; a single function answers every request. Requests
    that a real provider would refuse (a tool call without its result, for one) get a 400 and use
    up no item, unless `strict` is off. A request past the script's end gets a 400, too.
    """

    def __init__(self, *script: Script, port: int = 0, strict: bool = True) -> None:
        self.requests: list[Received] = []
        self.billed = Usage()
        self._script = script
        self._strict = strict
        self._used = 0
        self._port = port
        self._stop: Callable[[], object] = lambda: None
        self._ready: threading.Event = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="stub-provider", daemon=True)

    def __enter__(self) -> Self:
        """Start; raises what kept the server from listening."""
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and let go of everyone who hangs."""
        self._stop()
        self._thread.join()

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return self._port

    @property
    def anthropic_url(self) -> str:
        """What ANTHROPIC_BASE_URL should be."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def openai_url(self) -> str:
        """What OPENAI_BASE_URL should be."""
        return f"http://127.0.0.1:{self._port}/v1"

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:  # noqa: BLE001  handed to the thread that waits for it
            self._failure = failure
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        connections: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = loop.create_task(self._connection(reader, writer))
            connections.add(connection)
            connection.add_done_callback(connections.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", self._port, limit=HEAD_BYTES_MAX)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await stopped.wait()
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; say whether the connection can be used for another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in head[1:] if line]
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        sent = await reader.readexactly(int(headers.get("content-length", "0")))
        path = head[0].split(" ")[1].partition("?")[0]
        kind = next((kind for end, kind in PATHS.items() if path.endswith(end)), None)
        if kind is None:
            await _send(writer, 404, {}, b'{"error": {"message": "no such path"}}')
            return True
        request = Received(len(self.requests) + 1, path, kind, headers, msgspec.json.decode(sent))
        self.requests.append(request)
        chosen = await self._choose(request)
        return await self._perform(chosen, request, len(sent), reader, writer)

    async def _choose(self, request: Received) -> Behaviour:
        refused = objection(request.format, request.body) if self._strict else None
        if refused:
            return status(400, message=refused)
        item: Script | None = None
        if len(self._script) == 1 and callable(self._script[0]):
            item = self._script[0]
        elif self._used < len(self._script):
            item = self._script[self._used]
        self._used += 1
        if item is None:
            return status(400, message=f"the script has no item for request {self._used}")
        if callable(item):
            try:
                # In a thread, so that a script may wait for its test without holding up others.
                item = await asyncio.to_thread(item, request)
            except Exception as failure:  # noqa: BLE001  told to the client, where a test sees it
                return status(400, message=f"the script failed: {failure!r}")
        return behaviour(item)

    async def _perform(
        self,
        chosen: Behaviour,
        request: Received,
        request_bytes: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if chosen.hang_at == -1:
            await reader.read()
            return False
        if chosen.status != 200:
            name = ERRORS.get(chosen.status, "api_error")
            told = error(request.format, name, chosen.message)
            await _send(writer, chosen.status, chosen.headers, told)
            return True
        reply = chosen.reply or ModelReply()
        if reply.usage.input_tokens == 0:
            usage = replace(reply.usage, input_tokens=-(-request_bytes // 4))
            reply = replace(reply, usage=usage)
        self._bill(reply.usage)
        end = next((n for n in (chosen.cut_at, chosen.hang_at) if n is not None), None)
        if request.body.get("stream"):
            events = stream(request.format, reply, chosen.thinking)
            events = events if chosen.raw is None else [chosen.raw]
            events = events if end is None else [b"".join(events)[:end]]
            await _stream(writer, chosen.headers, events, ends=end is None or chosen.cleanly)
        else:
            whole = chosen.raw or body(request.format, reply, chosen.thinking)
            said = len(whole) if end is None or not chosen.cleanly else min(end, len(whole))
            await _send(writer, 200, {**chosen.headers, "content-length": str(said)}, whole[:end])
        if chosen.hang_at is not None:
            await reader.read()
        return end is None or chosen.cleanly

    def _bill(self, usage: Usage) -> None:
        before, spent = msgspec.structs.asdict(self.billed), msgspec.structs.asdict(usage)
        self.billed = Usage(**{name: before[name] + spent[name] for name in before})


async def _send(
    writer: asyncio.StreamWriter, code: int, headers: Mapping[str, str], content: bytes
) -> None:
    length = {"content-type": "application/json", "content-length": str(len(content))}
    writer.write(_head(code, {**length, **headers}) + content)
    await writer.drain()


async def _stream(
    writer: asyncio.StreamWriter, headers: Mapping[str, str], events: list[bytes], *, ends: bool
) -> None:
    chunked = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
    writer.write(_head(200, {**chunked, **headers}))
    for event in events:
        if event:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
    if ends:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _head(code: int, headers: Mapping[str, str]) -> bytes:
    try:
        reason = HTTPStatus(code).phrase
    except ValueError:
        reason = "Unknown"
    lines = [f"HTTP/1.1 {code} {reason}", *(f"{name}: {text}" for name, text in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _echo(request: Received) -> str:
    said = request.body["messages"][-1].get("content")
    if isinstance(said, list):
        said = "".join(str(block.get("text", "")) for block in said)
    return f"You said: {said}"


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m perdure.testing.stub_provider")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    with StubProvider(_echo, port=parser.parse_args().port) as stub:
        print(f"ANTHROPIC_BASE_URL={stub.anthropic_url}")
        print(f"OPENAI_BASE_URL={stub.openai_url}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
