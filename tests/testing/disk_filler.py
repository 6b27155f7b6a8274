"""An agent that fills a disk: each of its steps keeps 40 KB. Its ledger says what it really did."""

from pathlib import Path

from perdure import Agent, ModelReply, ToolRequest, tool

LEDGER = Path(__file__).with_name("ledger")
STEPS = 12


@tool(effect="read")
def look(n: int) -> str:
    """Look at something large."""
    with LEDGER.open("a") as ledger:
        ledger.write(f"{n}\n")
    return str(n) * 40_000


def model(request):
    """Look once a step."""
    step = len(request.messages) // 2
    if step == STEPS:
        return "done"
    return ModelReply(tool_calls=(ToolRequest(f"c{step}", "look", {"n": step}),))


filler = Agent("filler", model=model, instructions="Look.", tools=[look])
