import asyncio
import time

from perdure import Agent, ModelReply, Runtime, ToolContext, ToolRequest, tool


@tool(effect="idempotent")  # what was under way at a crash is done again, with the same key
def pack(order: int, ctx: ToolContext) -> str:
    """Pack an order."""
    print(f"packing order {order}, key {ctx.key[:8]}", flush=True)
    time.sleep(2)  # the work; time enough to kill this process
    return f"order {order} is packed"


def play_the_model(request):  # no key, no network: this function plays the model
    step = len(request.messages) // 2 + 1  # every step adds a reply and a result
    call = ToolRequest(f"call{step}", "pack", {"order": step})
    return ModelReply(tool_calls=(call,)) if step <= 3 else "All packed, says the function."


async def main():
    model = play_the_model  # a real one: model = "anthropic:claude-sonnet-5"
    packer = Agent("packer", model=model, instructions="Pack what is asked.", tools=[pack])
    async with Runtime("sqlite:///perdure.db", agents=[packer]) as runtime:
        run = await runtime.send("packer", "Pack orders 1, 2 and 3.", idempotency_key="monday")
        print(await run.result())


if __name__ == "__main__":
    asyncio.run(main())
