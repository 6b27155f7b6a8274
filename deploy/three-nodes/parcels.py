"""An agent that sends a parcel: it reserves a shelf, as often as it must, and hands over once.

What it does is written down outside of Perdure, in the folder PARCELS_LEDGER, so that a tally can
compare the two: `reserve` goes to a receiver that honours keys (one file for each key), `hand_over`
to one that does not (a line for each call). PARCELS_SECONDS is how long each of them takes.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from perdure import Agent, ModelReply, ModelRequest, ToolContext, ToolRequest, tool

LEDGER = Path(os.environ.get("PARCELS_LEDGER", "parcels"))
SECONDS = float(os.environ.get("PARCELS_SECONDS", "0.5"))


def write_down(file: str, line: str) -> None:
    """Add a line to a file of the ledger, whole or not at all, and put it on the disk."""
    LEDGER.mkdir(parents=True, exist_ok=True)
    fd = os.open(LEDGER / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{line}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)


def was_handed_over(key: str) -> str | bool:
    """Ask the carrier for the parcel with this key: what it returned, or False."""
    file = LEDGER / "handed-over"
    for line in file.read_text().splitlines() if file.exists() else ():
        order, known, _ = line.split()
        if known == key:
            return f"parcel {order} is on its way"
    return False


@tool(effect="idempotent")
def reserve(order: str, ctx: ToolContext) -> str:
    """Reserve a shelf for an order.

    Args:
        order: The order's number.
    """
    write_down("asked", f"{order} {ctx.key} {os.getpid()}")
    (LEDGER / "reserved").mkdir(exist_ok=True)
    (LEDGER / "reserved" / f"{order}-{ctx.key}").touch()
    time.sleep(SECONDS)
    return f"order {order} has a shelf"


@tool(effect="once", probe=was_handed_over)
def hand_over(order: str, ctx: ToolContext) -> str:
    """Hand an order's parcel to the carrier.

    Args:
        order: The order's number.
    """
    write_down("handed-over", f"{order} {ctx.key} {os.getpid()}")
    time.sleep(SECONDS)
    return f"parcel {order} is on its way"


def play_the_model(request: ModelRequest) -> ModelReply | str:
    """Play the model: reserve, hand over, and say so."""
    order = re.findall(r"\d+", str(request.messages[0].content))[0]
    step = len(request.messages) // 2
    if step < 2:
        name = ("reserve", "hand_over")[step]
        return ModelReply(tool_calls=(ToolRequest(name, name, {"order": order}),))
    return f"Order {order}: {request.messages[-1].content}."


parcels = Agent(
    "parcels",
    model=play_the_model,
    instructions="Reserve a shelf for the order, then hand its parcel over.",
    tools=[reserve, hand_over],
)
