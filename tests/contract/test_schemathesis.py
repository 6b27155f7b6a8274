"""Somebody else's fuzzer reads our OpenAPI document and finds nothing that it does not say.

What counts is that no answer is a 5xx or undocumented: its status, its media type, its shape.
Whether every value that a schema allows is taken is not asked: a blank string reads as null, and
some rules are about two fields at once.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from bench.environments import NotInstalled, python_for

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KEY = "nrn_contract-0123456789abcdef"
HEADERS = {"Authorization": f"Bearer {KEY}"}
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance,unsupported_method,ignored_auth"
)
SECONDS_MAX = 100

THINGS = [
    ("agents", {"name": "bot", "system_prompt": "You help."}),
    ("agents/1/messages", {"content": "ask", "conversation_key": "talk"}),
    ("gards", {}),
    ("triggers", {"agent_id": 1, "name": "t", "cron": "0 0 1 1 *", "message": "hi"}),
    ("hooks", {"agent_id": 1, "name": "h"}),
    ("api_keys", {"scope": "read"}),
]
"""One of each, so that each has the id 1 (the key that asks is the first one)."""


@pytest.fixture(scope="module")
def schemathesis() -> Path:
    """Install it in an environment of its own."""
    try:
        return python_for(HERE / "schemathesis.txt", HERE).parent / "schemathesis"
    except NotInstalled as why:
        pytest.skip(f"schemathesis cannot be installed here: {why}")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Serve one of each thing; the server must stop cleanly."""
    command = [sys.executable, "-m", "tests.contract.server", str(tmp_path), KEY]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            for noun, body in THINGS:
                made = httpx2.post(f"{url}/api/v1/{noun}", json=body, headers=HEADERS)
                assert made.is_success, made.text
            yield url
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 0
        finally:
            server.kill()


def fuzz(schemathesis: Path, folder: Path, url: str, *options: str) -> int:
    """Return how many requests were made, none of which may have found anything."""
    done = subprocess.run(
        [
            str(schemathesis), *options[:2], "run", f"{url}/openapi.json", *options[2:],
            "--header", f"Authorization: {HEADERS['Authorization']}", "--checks", CHECKS,
            "--seed", "1", "--request-timeout", "10", "--no-color",
        ],
        cwd=folder, capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
    count = re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert count is not None, done.stdout[-2_000:]
    assert "returned only 401/403" not in done.stdout
    return int(count[1])


def test_every_operation_and_every_border_of_what_it_takes(
    schemathesis: Path, tmp_path: Path, url: str
) -> None:
    """Good and bad requests, and chains of them, that leave the key and the server in use."""
    settings = tmp_path / "schemathesis.toml"
    settings.write_text("", encoding="utf-8")
    count = fuzz(
        schemathesis, tmp_path, url, "--config-file", str(settings),
        "--exclude-operation-id", "revoke_key", "--exclude-operation-id", "drain_node",
        "--phases", "coverage,stateful",
        "--max-examples", "5",
    )  # fmt: skip
    assert count > 1_000


def test_what_is_there_is_asked_for_and_changed(
    schemathesis: Path, tmp_path: Path, url: str
) -> None:
    """Random requests about things that exist, and stay."""
    settings = tmp_path / "schemathesis.toml"
    settings.write_text('[parameters]\n"path.id" = 1\n"path.key" = "talk"\n', encoding="utf-8")
    count = fuzz(
        schemathesis, tmp_path, url, "--config-file", str(settings),
        "--exclude-method", "DELETE", "--exclude-operation-id", "drain_node",
        "--phases", "fuzzing", "--max-examples", "8",
    )  # fmt: skip
    assert count > 200
