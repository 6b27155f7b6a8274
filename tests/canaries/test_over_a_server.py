"""A server and a worker, each a process: no canary is in what they store, log, send or answer."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from perdure import RunFailed
from perdure.api.shapes import EndpointCreate, GardCreate, HookCreate, KeyCreate
from perdure.client import ApiError, AsyncClient
from perdure.testing.stub_provider import Received, StubProvider, status
from perdure.testing.stub_script import Item
from tests.canaries.agents import ASKED, TOOLS
from tests.canaries.places import CANARIES, found, stored
from tests.canaries.stores import a_store

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 60
LISTS = (
    "agents", "runs", "sessions", "workers", "hooks", "endpoints", "keys", "gards", "triggers",
    "usage",
)  # fmt: skip


class Process:
    """A process, what it was started with, and all that it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said = bytearray()
        self.arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        self._reading = asyncio.ensure_future(self._read())

    async def until(self, says: bytes) -> bytes:
        """Wait until it says something; return the rest of that line."""
        async with asyncio.timeout(SECONDS_MAX):
            while says not in self.said:
                assert not self._reading.done(), self.said.decode()
                await asyncio.sleep(0.02)
        return bytes(self.said).partition(says)[2].partition(b"\n")[0]

    async def end(self) -> None:
        """End it in good order, and read the rest."""
        if self._process.returncode is None:
            self._process.terminate()
        await asyncio.wait_for(self._reading, SECONDS_MAX)
        await self._process.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while piece := await self._process.stdout.read(65536):
            self.said += piece


@asynccontextmanager
async def started(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    """Run a program of ours until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Process(process)
    try:
        yield running
    finally:
        await running.end()


def provider(request: Received) -> Item:
    """Play a provider that repeats the key: in an error, and in a reply."""
    key = request.headers["authorization"]
    if "be rude" in str(request.body):
        return status(401, message=f"Incorrect API key provided: {key}. Find yours at /keys.")
    return ASKED if request.turn == 0 else f"You called with {key}."


async def ask_everything(client: AsyncClient, http: httpx2.AsyncClient) -> dict[str, str]:
    """Do what has to do with secrets; return those that the server made."""
    made = {}
    [agent] = await client.agents()
    worker_key = await client.call("create_key", body=KeyCreate(name="w"), idempotency_key="k1")
    made["WORKER_KEY"] = worker_key.key
    endpoint = EndpointCreate(name="e", url="http://127.0.0.1:9/x")
    told = await client.call("create_endpoint", body=endpoint, idempotency_key="k2")
    made["ENDPOINT_SECRET"] = told.signing_secret
    gard = await client.call("create_gard", body=GardCreate(name="g"), idempotency_key="k3")
    made["CLAIM_TOKEN"] = gard.claim_token
    secret = CANARIES["HOOK_SECRET"]
    hook = await client.call(
        "create_hook",
        body=HookCreate(
            agent_id=agent.id, name="h", signature_type="github", signing_secret=secret
        ),
        idempotency_key="k4",
    )
    made["HOOK_TOKEN"] = hook.token
    for signed_with in (secret, "another"):
        body = b'{"message": "everything, over a hook"}'
        signature = hmac.new(signed_with.encode(), body, hashlib.sha256).hexdigest()
        answer = await http.post(
            hook.path, content=body, headers={"x-hub-signature-256": f"sha256={signature}"}
        )
        assert answer.status_code in (202, 401)
    return made


async def everything_read(client: AsyncClient, http: httpx2.AsyncClient) -> dict[str, bytes]:
    """Read what the API has of anything."""
    paths = [f"/api/v1/{name}" for name in LISTS] + ["/openapi.json", "/ready", "/health"]
    for run in await client.runs():
        paths += [f"/api/v1/runs/{run.id}", f"/api/v1/runs/{run.id}/events"]
    for session in await client.sessions():
        paths.append(f"/api/v1/sessions/{session.id}")
    return {path: (await http.get(path)).content for path in paths}


async def run_to_its_end(client: AsyncClient, text: str) -> tuple[Any, str]:
    """Send a message, and return the run and what became of it."""
    run = await client.send("clerk", text)
    try:
        return run, str(await run.result(SECONDS_MAX))
    except (RunFailed, ApiError) as error:
        return run, f"{error!s} {error!r}"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_no_canary_is_found(kind: str, tmp_path: Path) -> None:
    """Not by anybody who has the store, the logs, the API and the list of processes."""
    for folder in ("data", "secrets"):
        (tmp_path / folder).mkdir()
    (tmp_path / "secrets" / "model-key").write_text(CANARIES["MODEL_KEY_FILE"] + "\n")
    places: dict[str, bytes] = {}
    admin = CANARIES["PERDURE_BOOTSTRAP_KEY"]
    with (
        StubProvider(provider, strict=False) as stub,
        a_store(kind, tmp_path / "data") as place,
    ):
        async with started(
            *("perdure", "--verbose", "server", "--port", "0", "--folder", f"{tmp_path}/data"),
            PERDURE_STORE=place.url,
            PERDURE_KEY_PEPPER=CANARIES["PEPPER"],
            PERDURE_BOOTSTRAP_KEY=admin,
            PERDURE_WEBHOOK_NETWORKS="127.0.0.0/8",
            PERDURE_WEBHOOK_PORTS="*",
        ) as server:
            url = (await server.until(b"perdure is at ")).split()[0].decode()
            async with (
                started(
                    *("tests.canaries.worker", url, f"{tmp_path}/secrets"),
                    PERDURE_KEY=admin,
                    OPENAI_BASE_URL=stub.openai_url,
                    **{k: CANARIES[k] for k in ("SHOP_KEY", "OPENAI_API_KEY", "APP_PASSWORD")},
                ) as worker,
                AsyncClient(url, admin) as client,
                httpx2.AsyncClient(
                    base_url=url, headers={"authorization": f"Bearer {admin}"}
                ) as http,
            ):
                await worker.until(b"the worker has joined")
                made = await ask_everything(client, http)
                done, answer = await run_to_its_end(client, "everything")
                _, refusal = await run_to_its_end(client, "be rude")
                places |= await everything_read(client, http)
                events = [event async for event in done.events()]
        places |= {
            "what was answered": f"{answer} {refusal}".encode(),
            "the server's command line": server.arguments,
            "the worker's command line": worker.arguments,
            "the server's log": bytes(server.said),
            "the worker's log": bytes(worker.said),
            **stored(tmp_path / "data"),
            **await asyncio.to_thread(place.kept),
        }
    # The secrets were used, and the places are the right ones.
    assert {request.headers["authorization"] for request in stub.requests} == {
        f"Bearer {CANARIES['MODEL_KEY_FILE']}"
    }
    ended = [e for e in events if e.event_type in ("tool_result", "tool_error")]
    assert len(ended) == len(TOOLS), answer
    assert answer == "You called with Bearer [secret]."
    assert "Incorrect API key provided: Bearer [secret]" in refusal
    assert b"/worker/websocket?token=[secret]" in places["the worker's log"]
    kept = [body for name, body in places.items() if "/" not in name and "log" not in name]
    assert any(b"Bearer [secret]" in body for body in kept)
    assert len(found({"what is no secret": "Incorrect API key provided"}, places)) > 3
    assert found({**CANARIES, **made}, places) == []
