"""Tools that run in a process of their own; the tests call them, and so does the child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from perdure.worker import ToolContext, tool

IMPORTED_IN = os.getpid()


@dataclass
class Point:
    x: int
    y: int = 3


@tool(effect="read", isolated=True)
def look(at: Point, when: datetime, ctx: ToolContext) -> dict[str, Any]:
    """Say what came, and where it came to."""
    return {"at": at, "year": when.year, "key": ctx.key, "session": ctx.session, "pid": os.getpid()}


@tool(effect="read", isolated=True)
async def look_async(n: int) -> int:
    return n + 1


@tool(effect="read", isolated=True)
def talk() -> str:
    print("said on stdout")
    subprocess.run([sys.executable, "-c", "print('said by a child')"], check=True)
    return sys.stdin.read()


@tool(effect="read", isolated=True)
def environment(name: str) -> str | None:
    return os.environ.get(name)


@tool(effect="once", isolated=True)
def fail(how: str) -> Any:
    """Fail in one of many ways."""
    if how == "raise":
        raise ValueError("bad")
    if how == "exit":
        sys.exit(3)
    if how == "vanish":
        os._exit(3)
    if how == "bytes":
        return b"x"
    if how == "large":
        return "x" * (1 << 20)
    if how == "ended":
        os.kill(os.getpid(), signal.SIGTERM)
    if how == "forked" and os.fork() == 0:
        signal.pause()
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def hold(fifo: str) -> None:
    """Tell the fifo our pid, and hold it open, we and a child, until we are killed."""
    fd = os.open(fifo, os.O_WRONLY)
    child = [sys.executable, "-c", "import signal; signal.pause()"]
    with subprocess.Popen(child, pass_fds=[fd]):
        os.write(fd, b"%d\n" % os.getpid())
        signal.pause()


hold_read = tool(name="hold_read", effect="read", timeout=5, isolated=True)(hold)
hold_once = tool(name="hold_once", effect="once", timeout=5, isolated=True)(hold)


@tool(effect="read", isolated=True, credentials=["shop"])
def spell_key(ctx: ToolContext) -> str:
    """Say how the key is spelt, without saying it."""
    return "-".join(ctx.credential("shop"))


@tool(effect="read", isolated=True, credentials=["shop"])
def shout_key(how: str, ctx: ToolContext) -> str:
    """Say the key itself."""
    if how == "raise":
        raise ValueError("x" * 3_990 + ctx.credential("shop"))
    return ctx.credential("shop")
