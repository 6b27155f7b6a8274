"""Somebody who learns from what his inputs cause finds nothing that is not documented.

`FUZZ_SECONDS=120` looks for longer, `make fuzz` for ten minutes.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from bench.environments import python_for
from perdure.wire.server import Fact
from perdure.wire.worker import WorkerFact

HERE = Path(__file__).parent
SECONDS = int(os.environ.get("FUZZ_SECONDS", "10"))
SLACK_SECONDS = 60
WHEELS = ((3, 11), (3, 12), (3, 13))
"""The versions of Python that atheris is published for, all of them for Linux on x86-64."""

LOBBY = "worker:lobby"
TOOL = {"name": "charge", "description": "Take money.", "input_schema": {}, "side_effect": True}
JOIN = {
    "worker_id": "w1",
    "tools": [TOOL],
    "capabilities": ["llm", "tools"],
    "features": [
        *("message_cache", "results", "tasks", "text", "progress", "cancel", "begin", "credit"),
        "holds",
    ],
    "agents": [{"name": "bot", "tools": ["charge"]}],
}
LLM = {"task_id": "T1", "model": "m", "system_prompt": "", "run_id": 7, "tools": []}
USER = {"role": "user", "content": "hi"}
RESULT = {"task_id": "T1", "status": "ok"}

# What is said well: to a server of workers, to a server of clients, to a worker.
WORKER_SAYS: list[tuple[str, Any]] = [
    ("phx_join", JOIN),
    ("tool_result", {**RESULT, "content": "hi", "usage": {"input_tokens": 1},
                     "tool_calls": [{"id": "c", "name": "charge", "arguments": {"n": 5}}]}),
    ("tool_result", {**RESULT, "result": "done", "duplicate": True, "verdict": "happened"}),
    ("tool_result", {"task_id": "T1", "status": "error", "error": "429 slow down", "lost": True}),
    ("tool_result", {"task_id": "T1", "status": "error", "error": "message_cache_miss"}),
    ("results", {"results": [RESULT, RESULT]}),
    ("text", {"pieces": {"T1": "piece"}}),
    ("holds", {"task_ids": ["T1", "T2"]}),
    ("progress", {"task_id": "T1", "progress": 0.5}),
    ("begin", {"task_id": "T1"}),
    ("credit", {"tasks": 3}),
    ("register_port", {"internal_port": 80, "name": "web", "protocol": "http", "url": None}),
    ("drain", {}),
    ("phx_leave", {}),
]  # fmt: skip
CLIENT_SAYS: list[tuple[str, Any]] = [
    ("phx_join", {"run_id": 7}),
    ("send_message", {"content": "hi", "gard_id": 3}),
    ("phx_leave", {}),
]
SERVER_SAYS: list[tuple[str, Any]] = [
    ("phx_reply", {"status": "ok", "response": {"features": ["message_cache", "credit"]}}),
    ("phx_reply", {"status": "ok", "response": {}}),
    ("phx_reply", {"status": "error", "response": {"reason": "already_claimed"}}),
    ("llm_task", {**LLM, "messages": [USER]}),
    ("llm_task", {**LLM, "messages_delta": {"base_count": 1, "drop": 0, "append": [USER]}}),
    ("llm_task", {**LLM, "messages": [USER], "purpose": "compact"}),
    ("llm_task", {"task_id": "T1", "model": None}),
    ("tool_task", {"task_id": "T2", "tool_name": "charge", "input": {}, "idempotency_key": "k"}),
    ("tasks", {"tasks": [["llm_task", {**LLM, "messages": [USER]}], ["cancel", {}]]}),
    ("cancel", {"task_id": "T1"}),
    ("proceed", {"task_id": "T1"}),
    ("gard_destroyed", {}),
    ("key_revoked", {}),
    ("phx_close", {}),
]
CUTS = (b"\x00", b"\x01", b"\xa0")
"""Line by line as text, the same as bytes, and anywhere."""


def seeds() -> Iterator[bytes]:
    """Yield inputs that are well said: whole talks, and each frame after the first one."""
    for end, (topic, says) in enumerate(
        ((LOBBY, WORKER_SAYS), ("agent:5", CLIENT_SAYS), (LOBBY, SERVER_SAYS))
    ):
        lines = [json.dumps(["1", str(n), topic, *said]) for n, said in enumerate(says, 1)]
        lines.append('[null,"9","phoenix","heartbeat",{}]')
        for cut in CUTS:
            yield bytes([end]) + cut + "\n".join(lines).encode()
        for line in lines[1:]:
            yield bytes([end]) + CUTS[0] + f"{lines[0]}\n{line}".encode()
        yield bytes([end]) + CUTS[0] + lines[2].encode()  # said too early, or: a join refused


def fuzz(folder: Path, seconds: int) -> str:
    """Return what was printed while nothing was found."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    done = subprocess.run(
        [
            python_for(HERE / "atheris.txt", HERE), HERE / "fuzzing.py", corpus,
            f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10", "-seed=1",
            "-rss_limit_mb=0", f"-artifact_prefix={folder}/", "-verbosity=0",
        ],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=seconds + SLACK_SECONDS,
    )  # fmt: skip
    inputs = [path.read_bytes() for path in folder.glob("*-*") if path.is_file()]
    assert done.returncode == 0, f"{done.stdout[-4_000:]}\nby the input {inputs}"
    return done.stdout


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info[:2] not in WHEELS,
    reason="atheris is not published for this Python on this machine",
)
def test_nothing_undocumented_comes_out_of_either_end(tmp_path: Path) -> None:
    """Each fact was caused, and reading its results raised nothing; memory stayed bounded."""
    caused = {line.removeprefix("caused ") for line in fuzz(tmp_path, SECONDS).splitlines()}
    facts = {fact.__name__ for fact in (*get_args(Fact), *get_args(WorkerFact))}
    assert facts - caused == set()
    assert {"BadFrame", "ReportReply", "ReportToolResult", "ReportProbe", "CacheMiss"} <= caused


if __name__ == "__main__":
    print(fuzz(Path(sys.argv[1]), int(sys.argv[2]))[-2_000:])
