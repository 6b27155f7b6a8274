"""A worker of the official SDK: `worker.py URL KEY OPTIONS`.

OPTIONS are JSON: `agents` (a list of an agent's options, its `tools` by name), and what `Norns.run`
takes. It ends by saying why: `stopped`, or the SDK's error.
"""

import asyncio
import json
import logging
import sys
import time
from pathlib import Path

from litellm import write
from norns import Agent, Norns, tool

GATE_SECONDS_MAX = 30


@tool(side_effect=True)
def charge(amount: int) -> str:
    """Take money."""
    write(f"charged {amount}")
    return f"charged {amount}"


@tool(side_effect=True)
def charge_at(amount: int, gate: str) -> str:
    """Take money once a file is there."""
    write(f"charging {amount}")
    wait_for(gate)
    return charge.handler(amount)


@tool
def look(thing: str) -> str:
    """Look at something."""
    write(f"looked at {thing}")
    return f"{thing} is blue"


@tool
async def fetch(page: str) -> str:
    """Fetch a page without blocking."""
    await asyncio.sleep(0)
    return f"the text of {page}"


@tool
def big(chars: int) -> str:
    """Return a text of some length."""
    return "x" * chars


@tool
def fail(why: str) -> str:
    """Fail."""
    raise ValueError(why)


@tool
def open_port(number: int) -> str:
    """Tell Norns of a port."""
    sdk.register_port(number, name="web", url=f"http://localhost:{number}")
    return "open"


TOOLS = {one.name: one for one in (charge, charge_at, look, fetch, big, fail, open_port)}


def wait_for(gate):
    """Return when the file is there."""
    deadline = time.monotonic() + GATE_SECONDS_MAX
    while not Path(gate).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(gate)
        time.sleep(0.01)


logging.basicConfig(level=logging.INFO, stream=sys.stderr)
url, key, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
agents = [
    Agent(**{"name": "bot", "system_prompt": "You help.", **one,
             "tools": [TOOLS[name] for name in one.get("tools", TOOLS)]})
    for one in options.pop("agents")
]  # fmt: skip
sdk = Norns(url, api_key=key)
try:
    sdk.run(agents, **options)
except Exception as error:  # noqa: BLE001 - the test judges it
    print(f"{type(error).__name__}: {error}", flush=True)
else:
    print("stopped", flush=True)
