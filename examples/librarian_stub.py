"""Stand in for the librarian's model: real HTTP on this machine, no key, and no intelligence.

    python examples/librarian_stub.py

It prints two lines to paste into another terminal, in which `perdure run` then asks it instead of a
provider. It searches for the last word of the question and lists what was found.
"""

from __future__ import annotations

import json
import re
import threading
from contextlib import suppress
from typing import Any

from perdure import ModelReply
from perdure.testing import StubProvider, asks, call, says
from perdure.testing.stub_provider import Received

SHOWN_MAX = 10


def play_the_librarian(request: Received) -> ModelReply:
    """Answer one request: first with two tool calls, then with what they found."""
    messages = request.body["messages"]
    question = next(_text(m["content"]) for m in messages if m["role"] == "user")
    word = (re.findall(r"\w+", question) or [""])[-1]
    if request.turn == 0:
        return asks(call("search_text", text=word), call("list_files"))
    matches, files = [json.loads(result) for result in _results(messages)[:2]]
    if not matches:
        return says(f"Nothing about {word!r} in {len(files)} files.")
    shown = "\n".join(f"- {match}" for match in matches[:SHOWN_MAX])
    return says(f"What {len(files)} files say about {word!r}:\n{shown}")


def _results(messages: list[dict[str, Any]]) -> list[str]:
    """Return the results of tool calls, as either of the two formats tells them."""
    found = [message["content"] for message in messages if message["role"] == "tool"]
    for message in messages:
        blocks = message["content"] if isinstance(message["content"], list) else []
        found += [_text(block["content"]) for block in blocks if block["type"] == "tool_result"]
    return found


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content)


if __name__ == "__main__":
    with StubProvider(play_the_librarian) as stub:
        print(f"export OPENAI_BASE_URL={stub.openai_url}")
        print("export PERDURE_MODEL=openai:stub", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
