"""A stand-in for LiteLLM: its model does what the last message of the user says.

That message is a list of replies as JSON; the model gives the one that comes after as many as it
has given since. A reply is a text, in which `{last}` is what the last tool returned, or a list of
`[tool, arguments]`, or `{"fails": text}`. Each call is written to the journal.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace as Object


def completion(model, messages, tools=(), **options):
    """Reply to messages, as LiteLLM's function of this name does."""
    asked = max(at for at, message in enumerate(messages) if message["role"] == "user")
    since = messages[asked + 1 :]
    said = sum(message["role"] == "assistant" for message in since)
    write(f"model {model} {len(messages)} messages")
    content = messages[asked]["content"]
    try:
        reply = json.loads(content)[said]
    except (ValueError, TypeError):
        reply = f"you said {content}"
    if isinstance(reply, dict):
        raise RuntimeError(reply["fails"])  # noqa: TRY004
    if isinstance(reply, list):
        calls = [_call(f"call_{said}_{n}", *call) for n, call in enumerate(reply)]
        return _response(None, calls, "tool_calls")
    last = next((m["content"] for m in reversed(since) if m["role"] == "tool"), "")
    return _response(reply.replace("{last}", last), None, "stop")


def write(line):
    """Add a line to the journal: one write, so that lines of several processes do not mix."""
    with Path(os.environ["JOURNAL"]).open("a", encoding="utf-8") as journal:
        journal.write(line + "\n")


def _call(id_, name, arguments):
    return Object(
        id=id_, type="function", function=Object(name=name, arguments=json.dumps(arguments))
    )


def _response(content, calls, finish):
    message = Object(role="assistant", content=content, tool_calls=calls)
    usage = Object(prompt_tokens=10, completion_tokens=2, total_tokens=12)
    choice = Object(index=0, message=message, finish_reason=finish)
    return Object(choices=[choice], usage=usage, model="stub")
