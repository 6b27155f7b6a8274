"""A real agent at real work, in a process of its own, to be killed at its worst moments.

It surveys a directory: it lists files, measures some of them, saves a report under its idempotency
key, and publishes a line, which can be done only once. The far ends of its effects are files
outside its log. Everything it does is also written, at the moment it is done and with fsync, to a
ledger that it never reads: the ledger is the witness. The model is a function, and says so.

`python -m perdure.testing.durability --store URL --root DIR --out DIR` runs it, or goes on with it.
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
from perdure.core.messages import AssistantMessage, ModelReply, ToolMessage, ToolRequest, Usage
from perdure.ports import faults
from perdure.ports.models import ModelRequest
from perdure.testing.faults import install_from_environment
from perdure.worker import Agent, ToolContext, tool

FILES_MAX = 3
SESSION_KEY = "survey"
IDEMPOTENCY_KEY = "the one survey"
SKIPPED = {".git", ".venv", "__pycache__", "node_modules", ".perdure"}


class Ledger:
    """What really happened, line by line, each on disk before the next thing is done."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, what: str, **fields: Any) -> None:
        """Append one line."""
        line = json.dumps({"what": what, "pid": os.getpid(), **fields}) + "\n"
        os.write(self._fd, line.encode())
        os.fsync(self._fd)


class World:
    """The agent's tools, and the far ends of their effects."""

    def __init__(self, root: Path, out: Path) -> None:
        self.root = root
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(out / "ledger.jsonl")
        self.published = out / "published.jsonl"

    def agent(self, model: Any = None) -> Agent:
        """Return the agent; without `model` a function plays the model."""
        return Agent(
            "surveyor",
            model=model or self.play_the_model,
            instructions=(
                "Survey a directory: call list_files, then measure three of the files at once, "
                "then save_report with a short summary, then publish one line, then answer."
            ),
            tools=self.tools(),
        )

    def tools(self) -> list[Any]:
        """Return one tool of each effect class, with the world bound to them."""

        @tool(effect="read")
        def list_files(ctx: ToolContext) -> list[str]:
            """List some files of the directory."""
            self.ledger.write("tool", tool="list_files", call=ctx.call, attempt=ctx.attempt)
            return self.files()

        @tool(effect="read")
        def measure(path: str, ctx: ToolContext) -> dict[str, Any]:
            """Count the lines of a file and take its fingerprint.

            Args:
                path: The file, relative to the directory.
            """
            self.ledger.write("tool", tool="measure", call=ctx.call, attempt=ctx.attempt)
            data = self._inside(path).read_bytes()
            faults.reach("user.measuring")
            return {"path": path, "lines": data.count(b"\n"), "sha256": _sha256(data)[:16]}

        @tool(effect="idempotent")
        def save_report(body: str, ctx: ToolContext) -> str:
            """Save the report. The far end honours the idempotency key."""
            self.ledger.write("tool", tool="save_report", call=ctx.call, attempt=ctx.attempt)
            target = self.out / f"report-{ctx.key}.md"
            try:
                fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return f"{target.name} (had been saved)"
            with os.fdopen(fd, "w") as file:
                file.write(body)
            self.ledger.write("effect", tool="save_report", key=ctx.key)
            faults.reach("user.saved")
            return target.name

        def was_published(key: str) -> bool:
            if not self.published.exists():
                return False
            return any(json.loads(line)["key"] == key for line in self.published.open())

        @tool(effect="once", probe=was_published)
        def publish(line: str, ctx: ToolContext) -> str:
            """Publish one line: this cannot be taken back, and must not be done twice."""
            self.ledger.write("tool", tool="publish", call=ctx.call, attempt=ctx.attempt)
            fd = os.open(self.published, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(fd, (json.dumps({"key": ctx.key, "line": line}) + "\n").encode())
            os.fsync(fd)
            os.close(fd)
            self.ledger.write("effect", tool="publish", key=ctx.key)
            faults.reach("user.published")
            return "published"

        return [list_files, measure, save_report, publish]

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
        self.ledger.write("model", turn=turn)
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
        else:
            text = f"Surveyed {len(results) - 3} files; the report is saved and announced."
        finish = "tool_call" if requests else "stop"
        return ModelReply(text, requests, finish, usage, model="a function")

    def _inside(self, path: str) -> Path:
        target = (self.root / path).resolve()
        if not target.is_relative_to(self.root.resolve()):
            raise ValueError(f"{path} is outside the directory")
        return target


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def survey(store: str, root: Path, out: Path, model: str | None) -> str:
    """Start the survey, or go on with it; return the answer."""
    world = World(root, out)
    async with Runtime(store, agents=[world.agent(model)]) as runtime:
        run = await runtime.send(
            "surveyor",
            "Survey the directory.",
            session=SESSION_KEY,
            idempotency_key=IDEMPOTENCY_KEY,
        )
        return str(await run.result())


def main() -> None:
    """Run one life of the agent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model")
    options = parser.parse_args()
    install_from_environment()
    answer = asyncio.run(survey(options.store, options.root, options.out, options.model))
    sys.stdout.write(json.dumps({"answer": answer}) + "\n")


if __name__ == "__main__":
    main()
