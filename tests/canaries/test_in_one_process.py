"""An agent in this process: its canaries are found in nothing that it leaves behind."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure import ModelError, ModelReply, ModelRequest, RunFailed, Runtime
from perdure.worker import redaction
from tests.canaries.agents import ASKED, TOOLS, Vault, clerk
from tests.canaries.places import CANARIES, found
from tests.canaries.stores import KINDS, Place, a_store


class Telemetry:
    """Keeps what the runtime tells."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def emit(self, name: str, **fields: Any) -> None:
        """Keep one fact."""
        self.told.append({"name": name, **fields})


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that is logged, at every level."""
    out, handler = io.StringIO(), logging.StreamHandler()
    handler.setStream(out)
    root, before = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield out
    root.removeHandler(handler)
    root.setLevel(before)


def play(request: ModelRequest) -> ModelReply | str:
    """Call every tool; then fail as a provider does that repeats the key."""
    if len(request.messages) == 1:
        return ASKED
    if len(request.messages) == 1 + 1 + len(TOOLS):
        return f"I was told {CANARIES['VAULT_VALUE']}."
    raise ModelError(f"invalid key {CANARIES['VAULT_VALUE']}", status=401)


async def lived(place: Place, lines: io.StringIO) -> tuple[dict[str, bytes], list[Any]]:
    """Let an agent live, and return all that it left behind, and what became of its tools."""
    telemetry = Telemetry()
    said: list[str] = []
    async with Runtime(
        place.url,
        [clerk(Path("/nowhere"), play)],
        telemetry=telemetry,
        credential_providers={"vault": Vault()},
    ) as node:
        run = await node.send("clerk", "Do everything", session="s")
        said.append(await run.result())
        events = [event async for event in run.events()]
        again = await node.send("clerk", "Once more", session="s")
        with pytest.raises(RunFailed) as failed:
            await again.result()
        said += [str(failed.value), repr(failed.value), failed.value.code]
        events += [event async for event in again.events()]
    ended = [event for event in events if event.type in ("tool_call_succeeded", "tool_call_failed")]
    return {
        "what the run said": json.dumps(said).encode(),
        "events": msgspec.json.encode([event.event for event in events], enc_hook=repr),
        "telemetry": msgspec.json.encode(telemetry.told, enc_hook=repr),
        "log lines": lines.getvalue().encode(),
        **await asyncio.to_thread(place.kept),
    }, ended


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the canaries where secrets are configured."""
    for name in ("SHOP_KEY", "APP_PASSWORD"):
        monkeypatch.setenv(name, CANARIES[name])
    redaction._known.clear()
    redaction._forms = redaction._in_json = ()
    yield
    redaction._known.clear()
    redaction._forms = redaction._in_json = ()


@pytest.mark.parametrize("kind", KINDS)
async def test_no_canary_is_found(kind: str, tmp_path: Path, lines: io.StringIO) -> None:
    """Nor the password of the store itself."""
    with a_store(kind, tmp_path) as place:
        places, ended = await lived(place, lines)
    assert len(ended) == len(TOOLS)
    kept = places.keys() - {"what the run said", "events", "telemetry", "log lines"}
    assert any(b"Bearer [secret]" in places[name] for name in kept)
    assert any(b"x" * 90_000 in places[name] for name in kept), "what is large is looked into"
    assert b"[secret]" in places["log lines"]
    assert found(CANARIES, places) == []


async def test_the_search_finds_them_where_nothing_is_redacted(
    tmp_path: Path, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the test above would prove nothing: the tools do let them out."""
    monkeypatch.setattr(redaction, "_without", lambda text, forms: text)
    with a_store("sqlite", tmp_path) as place:
        places, _ = await lived(place, lines)
    hits = found(CANARIES, places)
    for secret in ("SHOP_KEY", "VAULT_VALUE", "APP_PASSWORD"):
        for place in ("events", "p.db, unpacked", "log lines"):
            assert f"{secret} in {place}" in hits
    assert "VAULT_VALUE in what the run said" in hits
    # What hides itself needs no list.
    assert not [hit for hit in hits if "VAULT_TOKEN" in hit]
