"""A real agent at real work, in a process of its own, to be killed at its worst moments.

It surveys a directory: it lists files, measures some of them, saves a report under its idempotency
key, publishes a line and mails it to somebody; the last two can be done only once, and only the
first of them can be asked about afterwards. Everything it does happens in the ledger, a process
that is never killed: the ledger is the far end and the witness. The model is a function, and says
so.

`python -m perdure.testing.durability --store URL --root DIR --out DIR --ledger SOCKET` runs it, or
goes on with it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from perdure.bootstrap import Runtime
from perdure.core.history import malformed
from perdure.core.messages import AssistantMessage, ModelReply, ToolMessage, ToolRequest, Usage
from perdure.ports import faults
from perdure.ports.models import ModelRequest
from perdure.testing.client import Client
from perdure.testing.faults import install_from_environment
from perdure.testing.ledger import Ledger
from perdure.testing.mutants import break_from_environment
from perdure.worker import Agent, ToolContext, tool

FILES_MAX = 3
SESSION_KEY = "survey"
SURVEY = f"default/surveyor/{SESSION_KEY}"
IDEMPOTENCY_KEY = "the one survey"
WORLD_FILE = "ledger.jsonl"
SKIPPED = {".git", ".venv", "__pycache__", "node_modules", ".perdure"}


class World:
    """The agent's tools, and the far ends of their effects."""

    def __init__(self, root: Path, out: Path, ledger: Path) -> None:
        self.root = root
        out.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(ledger, out / WORLD_FILE)

    def agent(self, model: Any = None) -> Agent:
        """Return the agent; without `model` a function plays the model."""
        return Agent(
            "surveyor",
            model=model or self.play_the_model,
            instructions=(
                "Survey a directory: call list_files, then measure three of the files at once, "
                "then save_report with a short summary, then publish one line, then mail it to "
                "the owner, then answer."
            ),
            tools=self.tools(),
        )

    def tools(self) -> list[Any]:
        """Return one tool of each effect class, with the world bound to them."""

        @tool(effect="read")
        def list_files(ctx: ToolContext) -> list[str]:
            """List some files of the directory."""
            self.note("list_files", ctx)
            return self.files()

        @tool(effect="read")
        def measure(path: str, ctx: ToolContext) -> dict[str, Any]:
            """Count the lines of a file and take its fingerprint.

            Args:
                path: The file, relative to the directory.
            """
            self.note("measure", ctx, path=path)
            data = self._inside(path).read_bytes()
            faults.reach("user.measuring")
            return {"path": path, "lines": data.count(b"\n"), "sha256": _sha256(data)[:16]}

        @tool(effect="idempotent")
        def save_report(body: str, ctx: ToolContext) -> str:
            """Save the report. The far end honours the idempotency key."""
            self.note("save_report", ctx, body=body)
            self.ledger.effect(ctx.key, honour_key=True, tool="save_report")
            faults.reach("user.saved")
            return "saved"

        def was_published(key: str) -> str | bool:
            return PUBLISHED if self.ledger.happened(key) else False

        @tool(effect="once", probe=was_published)
        def publish(line: str, ctx: ToolContext) -> str:
            """Publish one line: this cannot be taken back, and must not be done twice."""
            self.note("publish", ctx, line=line)
            self.ledger.effect(ctx.key, honour_key=False, tool="publish")
            faults.reach("user.published")
            return PUBLISHED

        @tool(effect="once")
        def mail(to: str, ctx: ToolContext) -> str:
            """Mail the line to somebody: nobody can ask the far end afterwards."""
            self.note("mail", ctx, to=to)
            self.ledger.effect(ctx.key, honour_key=False, tool="mail")
            faults.reach("user.mailed")
            return MAILED

        return [list_files, measure, save_report, publish, mail]

    def note(self, tool: str, ctx: ToolContext, **arguments: Any) -> None:
        """Have the ledger know that a tool runs."""
        self.ledger.note(
            "tool",
            tool=tool,
            session=str(ctx.session),
            call=ctx.call,
            attempt=ctx.attempt,
            key=ctx.key,
            arguments=json.dumps(arguments, sort_keys=True),
        )

    def files(self) -> list[str]:
        """Return the first files of the directory, in order."""
        found: list[str] = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if name not in SKIPPED)
            found += [
                str((Path(folder) / name).relative_to(self.root))
                for name in sorted(names)
                if (Path(folder) / name).is_file()
            ]
            if len(found) >= FILES_MAX:
                break
        return found[:FILES_MAX]

    def play_the_model(self, request: ModelRequest) -> ModelReply:
        """Reply as a model would; what to say follows from the history alone."""
        turn = sum(isinstance(message, AssistantMessage) for message in request.messages)
        self.ledger.note("model", session=SURVEY, turn=turn, malformed=malformed(request.messages))
        results = [one.content for one in request.messages if isinstance(one, ToolMessage)]
        usage = Usage(input_tokens=100 * (turn + 1), output_tokens=20)
        requests: tuple[ToolRequest, ...] = ()
        text = ""
        if turn == 0:
            requests = (ToolRequest("c0", "list_files"),)
        elif turn == 1:
            requests = tuple(
                ToolRequest(f"m{n}", "measure", {"path": path}) for n, path in enumerate(results[0])
            )
        elif turn == 2:
            lines = [f"- {one['path']}: {one['lines']} lines" for one in results[1:]]
            body = "# Survey\n\n" + "\n".join(lines)
            requests = (ToolRequest("c2", "save_report", {"body": body}),)
        elif turn == 3:
            total = sum(one["lines"] for one in results[1:-1])
            line = f"{len(results) - 2} files, {total} lines"
            requests = (ToolRequest("c3", "publish", {"line": line}),)
        elif turn == 4:
            requests = (ToolRequest("c4", "mail", {"to": "the owner"}),)
        else:
            text = f"Surveyed {len(results) - 4} files; the report is saved, announced and mailed."
        finish = "tool_call" if requests else "stop"
        return ModelReply(text, requests, finish, usage, model="a function")

    def _inside(self, path: str) -> Path:
        target = (self.root / path).resolve()
        if not target.is_relative_to(self.root.resolve()):
            raise ValueError(f"{path} is outside the directory")
        return target


PUBLISHED = "published"
MAILED = "mailed"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def survey(store: str, world: World, model: str | None) -> str:
    """Start the survey, or go on with it; return the answer."""
    async with Runtime(store, agents=[world.agent(model)]) as runtime:
        client = Client(runtime, world.ledger, {"mail": MAILED})
        run = await client.send("surveyor", "Survey the directory.", SESSION_KEY, IDEMPOTENCY_KEY)
        return str(await client.attend(run))


def main() -> None:
    """Run one life of the agent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--model")
    options = parser.parse_args()
    break_from_environment()
    install_from_environment()
    world = World(options.root, options.out, options.ledger)
    answer = asyncio.run(survey(options.store, world, options.model))
    sys.stdout.write(json.dumps({"answer": answer}) + "\n")


if __name__ == "__main__":
    main()
