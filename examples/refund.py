"""An agent that pays money back: once, never twice, and only after a person has approved it.

    perdure dev examples/refund.py:support --policy examples/refund.toml

and in a second terminal, in the same folder:

    perdure send support "Refund order 42: 1999 cents"
    perdure approvals list
    perdure approvals approve 1

The tool needs a capability, and the agent was granted none: without the rules in `refund.toml` it
pays nothing. Without PERDURE_MODEL a function plays the model. Kill both processes wherever you
like and start them again: the payment provider below keeps the key of every payment, so that the
probe can say whether a refund that was interrupted had gone through.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

from perdure import Agent, ModelReply, ModelRequest, ToolContext, ToolRequest, tool

PAYMENTS = Path(os.environ.get("REFUND_PAYMENTS", "payments.jsonl"))
"""Stands for the payment provider: one line for each payment."""


def find_payment(key: str) -> str | bool:
    """Ask the provider for the payment with this key: what it returned, or False."""
    for line in PAYMENTS.read_text().splitlines() if PAYMENTS.exists() else ():
        payment = json.loads(line)
        if payment["key"] == key:
            return str(payment["receipt"])
    return False


@tool(effect="once", probe=find_payment, capabilities=["pay.refund"])
def refund(order: str, cents: int, ctx: ToolContext) -> str:
    """Pay money back to the customer.

    Args:
        order: The order's number.
        cents: How much, in cents.
    """
    receipt = f"receipt-{ctx.key[:8]}"
    print(f"paying {cents} cents for order {order}", flush=True)
    with PAYMENTS.open("a") as file:
        file.write(json.dumps({"key": ctx.key, "order": order, "cents": cents, "receipt": receipt}))
        file.write("\n")
    print(f"paid: {receipt}", flush=True)
    time.sleep(2)  # the provider is slow to answer; time enough to kill this process
    return receipt


def play_the_model(request: ModelRequest) -> ModelReply | str:
    """Play the model: pay what is asked for, and tell what happened."""
    if len(request.messages) > 1:
        told = str(request.messages[-1].content)
        return f"Refunded: {told}." if told.startswith("receipt-") else f"Not refunded. {told}"
    wanted = re.findall(r"\d+", str(request.messages[0].content))
    order, cents = [*wanted, "?", "0"][:2]
    payment = {"order": order, "cents": int(cents)}
    return ModelReply(tool_calls=(ToolRequest("pay", "refund", payment),))


support = Agent(
    "support",
    model=os.environ.get("PERDURE_MODEL", play_the_model),
    instructions="Refund what is asked. A person approves every refund, or says why not.",
    tools=[refund],
)
