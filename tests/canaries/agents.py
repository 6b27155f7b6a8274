"""An agent that does with its secrets whatever should not be done."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from perdure import (
    Agent,
    Credential,
    CredentialError,
    CredentialRefused,
    ModelReply,
    Secret,
    ToolContext,
    ToolRequest,
    tool,
)
from tests.canaries.places import CANARIES

NEEDS = ["shop", "vault"]


class Vault:
    """A provider that is asked with a token, and whose errors hold it."""

    async def resolve(self, reference: str) -> Credential:
        """Return the value; or fail in the way that the reference says."""
        token = CANARIES["VAULT_TOKEN"]
        if reference.endswith("raises"):
            raise PermissionError(f"denied for {token} at https://vault/?token={token}")
        if reference.endswith("says"):
            raise CredentialError("the vault is sealed")
        return Credential(Secret(CANARIES["VAULT_VALUE"]))


def _secrets(ctx: ToolContext) -> list[str]:
    return [*map(ctx.credential, ctx.credentials), os.environ["APP_PASSWORD"]]


@tool(effect="read", credentials=NEEDS)
def raises(ctx: ToolContext) -> str:
    """Raise an exception with a secret in its text, arguments, notes and chain."""
    secrets = _secrets(ctx)
    try:
        {}[tuple(secrets)]
    except KeyError as error:
        error.add_note(f"noted: {secrets}")
        raise RuntimeError("while signing with", *secrets) from error


@tool(effect="once", credentials=NEEDS)
async def raises_long(ctx: ToolContext) -> str:
    """Raise a text that is cut in the middle of a secret."""
    raise ValueError("x" * 3_965 + ctx.credential("vault"))


@tool(effect="read", credentials=NEEDS)
def returns(ctx: ToolContext) -> dict[str, Any]:
    """Return what was sent, with its headers."""
    return {"headers": {"authorization": f"Bearer {ctx.credential('shop')}"}, "context": repr(ctx)}


@tool(effect="read", credentials=NEEDS)
def returns_much(ctx: ToolContext) -> str:
    """Return so much that it is stored compressed, with a secret in it."""
    return "x" * 100_000 + ctx.credential("vault")


@tool(effect="read", credentials=NEEDS)
def returns_too_much(ctx: ToolContext) -> str:
    """Return more than may be kept, with a secret where the excerpt ends."""
    return "x" * 990 + ctx.credential("vault") + "x" * (1 << 20)


@tool(effect="read", credentials=NEEDS)
def returns_bytes(ctx: ToolContext) -> dict[str, bytes]:
    """Return what cannot be recorded, under a secret name."""
    return {ctx.credential("shop"): b""}


@tool(effect="read", credentials=NEEDS)
def is_refused(ctx: ToolContext) -> str:
    """Say that the far end refused the key."""
    raise CredentialRefused(f"401 for {ctx.credential('shop')}")


@tool(effect="read", credentials=NEEDS, isolated=True)
def isolated(ctx: ToolContext) -> dict[str, Any]:
    """Look at our command line, and log."""
    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("perdure.worker").warning("with %s", ctx.credential("shop"))
    lines = [Path(f"/proc/{pid}/cmdline") for pid in ("self", os.getppid())]
    return {"told": [line.read_text() for line in lines if line.exists()], "argv": sys.argv}


@tool(effect="read", credentials=NEEDS, isolated=True)
def isolated_raises(ctx: ToolContext) -> str:
    """Raise in a process of its own."""
    raise RuntimeError("while signing with", *_secrets(ctx))


@tool(effect="read", credentials=NEEDS)
def logs(ctx: ToolContext) -> str:
    """Log to perdure's own logger."""
    try:
        raise ValueError(ctx.credential("vault"))  # noqa: TRY301  its traceback is what is logged
    except ValueError:
        logging.getLogger("perdure.worker").exception("with %s", ctx.credential("shop"))
    return "logged"


@tool(effect="read", credentials=["sealed"])
def lacks(ctx: ToolContext) -> str:
    """Need what its provider does not give."""
    return ctx.credential("sealed")


@tool(effect="read", credentials=["broken"])
def breaks(ctx: ToolContext) -> str:
    """Need what its provider fails at."""
    return ctx.credential("broken")


TOOLS = [
    raises, raises_long, returns, returns_much, returns_too_much, returns_bytes, is_refused,
    isolated, isolated_raises, logs, lacks, breaks,
]  # fmt: skip
ASKED = ModelReply(tool_calls=tuple(ToolRequest(each.spec.name, each.spec.name) for each in TOOLS))


def clerk(folder: Path, model: Any = "openai:canary") -> Agent:
    """Return the agent; its model's key and its shop's are in files of a folder."""
    references = {
        "shop": "env:SHOP_KEY",
        "vault": "vault:team/clerk",
        "sealed": "vault:says",
        "broken": "vault:raises",
    }
    if isinstance(model, str):
        references["model"] = f"file:{folder}/model-key"
    return Agent("clerk", model=model, tools=TOOLS, credentials=references)
