"""Importing perdure opens no socket, starts no thread or process, writes no file, asks no extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Runs in a process of its own. The audit hook sees what any module does, ours or a dependency's.
WATCH = """
import _thread, os, sys, threading

LOUD = ("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.mkdir", "os.remove",
        "os.rename", "os.rmdir", "os.system", "shutil.", "sqlite3.connect", "tempfile.",
        "urllib.Request")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
heard = []
importing = ["?"]

def listen(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
    if writes or event.startswith(LOUD):
        heard.append(f"{importing[0]}: {event} {arguments!r}"[:300])

def overhear(owner, name):
    real = getattr(owner, name)
    def start(*arguments, **named):
        heard.append(f"{importing[0]}: a thread was started")
        return real(*arguments, **named)
    setattr(owner, name, start)

overhear(threading.Thread, "start")
overhear(_thread, "start_new_thread")

import importlib, pkgutil
sys.addaudithook(listen)
package, *extras = sys.argv[1:]
importing[0] = package
root = importlib.import_module(package)
for info in pkgutil.walk_packages(root.__path__, package + "."):
    if not info.name.endswith("__main__"):
        importing[0] = info.name
        importlib.import_module(info.name)
heard += [f"{name} was imported: it belongs to an extra" for name in extras if name in sys.modules]
print("\\n".join(heard))
"""


def heard(package: str, folder: Path, *extras: str) -> str:
    """Import every module of a package in a fresh interpreter; return what it did besides."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, package, *extras],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() + done.stderr.strip()


def test_importing_every_module_is_quiet() -> None:
    """Every module, so that none can hide behind a lazy import; and none says a word."""
    extras = ("anthropic", "openai", "pydantic", "pydantic_ai")
    assert heard("perdure", ROOT / "src", *extras) == ""


@pytest.mark.parametrize(
    ("planted", "noise"),
    [
        ("import socket\nsocket.socket().close()", "socket."),
        ("import threading\nthreading.Thread(target=int).start()", "a thread was started"),
        ("import _thread\n_thread.start_new_thread(int, ())", "a thread was started"),
        ("open('left_behind', 'w').close()", "open"),
        ("import os\nos.mkdir('left_behind')", "os.mkdir"),
        ("import subprocess\nsubprocess.run(['true'])", "subprocess.Popen"),
        ("import sqlite3\nsqlite3.connect(':memory:').close()", "sqlite3.connect"),
        ("import wave", "belongs to an extra"),
        ("print('hello')", "hello"),
    ],
)
def test_a_planted_noise_is_heard(tmp_path: Path, planted: str, noise: str) -> None:
    """In a module of a subpackage, which the package itself does not import."""
    inner = tmp_path / "noisy" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "noisy" / "__init__.py").touch()
    (inner / "__init__.py").touch()
    (inner / "module.py").write_text(planted + "\n")
    assert noise in heard("noisy", tmp_path, "wave")
