"""An agent that pays money back: once, never twice, and only after a person has said yes.

    perdure run examples/refund.py:support "Refund order 42: 1999 cents"

Without PERDURE_MODEL a function plays the model. Kill it wherever you like and go on with
`perdure resume`: the payment provider below keeps the key of every payment, so that the probe can
say whether a refund that was interrupted had gone through.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

from perdure import Agent, ModelReply, ModelRequest, ToolContext, ToolRequest, ask_human, tool

PAYMENTS = Path(os.environ.get("REFUND_PAYMENTS", "payments.jsonl"))
"""Stands for the payment provider: one line for each payment."""


def find_payment(key: str) -> str | bool:
    """Ask the provider for the payment with this key: what it returned, or False."""
    for line in PAYMENTS.read_text().splitlines() if PAYMENTS.exists() else ():
        payment = json.loads(line)
        if payment["key"] == key:
            return str(payment["receipt"])
    return False


@tool(effect="once", probe=find_payment)
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
    """Play the model: ask a person first, pay when the answer is yes, and tell what happened."""
    step = len(request.messages) // 2
    wanted = re.findall(r"\d+", str(request.messages[0].content))
    order, cents = [*wanted, "?", "0"][:2]
    last = str(request.messages[-1].content)
    if step == 0:
        question = f"Refund {cents} cents for order {order}? (yes or no)"
        return ModelReply(tool_calls=(ToolRequest("ask", "ask_human", {"question": question}),))
    if step == 1 and last.strip().lower().startswith("y"):
        payment = {"order": order, "cents": int(cents)}
        return ModelReply(tool_calls=(ToolRequest("pay", "refund", payment),))
    return f"Refunded: {last}." if step == 2 else "Nothing was refunded."


support = Agent(
    "support",
    model=os.environ.get("PERDURE_MODEL", play_the_model),
    instructions="Refund what is asked, but ask a person with ask_human before you do.",
    tools=[refund, ask_human],
)
