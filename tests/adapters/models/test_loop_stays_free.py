"""The first call of a provider imports its SDK away from the event loop."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys, threading
from perdure.adapters.models import DirectModel, call, asks, says
from perdure.core.messages import UserMessage
from perdure.ports.models import ModelRequest
from perdure.testing.stub_provider import StubProvider

NAME = sys.argv[1]
HEAVY = ("pydantic", "openai", "anthropic")
on_the_loop, elsewhere = [], []

class Watch:
    def find_spec(self, name, path=None, target=None):
        here = threading.current_thread() is threading.main_thread()
        if name.split(".")[0].partition("_")[0] in HEAVY:
            (on_the_loop if here else elsewhere).append(name)

async def ask():
    with StubProvider(asks(call("look", n=1)), says("done")) as stub:
        url = stub.anthropic_url if NAME.startswith("anthropic") else stub.openai_url
        model = DirectModel(NAME, base_url=url, api_key="any")
        for _ in range(2):
            await model.reply(ModelRequest(NAME, "Be.", (UserMessage("hi"),)), lambda text: None)
        await model.aclose()

sys.meta_path.insert(0, Watch())
asyncio.run(ask())
assert elsewhere, "nothing was watched"
print(*on_the_loop)
"""


@pytest.mark.parametrize("name", ["anthropic:any", "openai:any"])
def test_no_import_stalls_the_loop(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
