"""Where secrets are configured: a canary for each place, which may be found nowhere else."""

from __future__ import annotations

import base64
import json
import sqlite3
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

CANARIES: Final = {
    "MODEL_KEY_FILE": "sk-canary-of-the-models-key-1a",
    "SHOP_KEY": 'canary "of the shop" é/+%&-2b',
    "VAULT_VALUE": "canary-of-the-vault-3c",
    "VAULT_TOKEN": "canary-of-the-token-that-the-vault-is-asked-with-4d",
    "OPENAI_API_KEY": "sk-canary-of-the-environments-key-5e",
    "PERDURE_BOOTSTRAP_KEY": "nrn_canary-of-the-first-admin-key-6f",
    "HOOK_SECRET": "canary-of-the-hooks-signing-secret-7a",
    "CLAIM_TOKEN": "canary-of-a-claim-token-8b",
    "APP_PASSWORD": "canary-of-a-password-in-the-environment-9c",
    "PEPPER": "canary-of-the-pepper-of-all-keys-1b-0123456789",
    "DATABASE": "canary-of-the-databases-password-0d",
}
"""Place -> secret. What a server makes up itself (keys, tokens) is added as it is made."""


def shapes(value: str) -> set[bytes]:
    """Return a secret in the shapes in which it might stand somewhere."""
    found = {value, quote(value, safe=""), repr(value)[1:-1]}
    for _ in range(2):  # JSON in JSON, too
        found |= {json.dumps(each, ensure_ascii=x)[1:-1] for each in found for x in (True, False)}
    raw = value.encode()
    for before in range(3):
        text = base64.b64encode(b"\0" * before + raw).decode()
        found.add(text[(0, 2, 3)[before] : (before + len(raw)) * 8 // 6])
    return {raw, value.encode("utf-16-le"), *(each.encode() for each in found)}


def found(canaries: Mapping[str, str], places: Mapping[str, bytes]) -> list[str]:
    """Return which canaries are where. The second half of one counts: a text may have been cut."""
    return [
        f"{name} in {place}"
        for name, value in canaries.items()
        for place, body in places.items()
        if any(shape in body for shape in shapes(value) | {value[len(value) // 2 :].encode()})
    ]


def stored(folder: Path, but: Iterable[str] = ()) -> dict[str, bytes]:
    """Return all bytes of all files below a folder, and every value of a database unpacked."""
    places: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in but:
            body = path.read_bytes()
            places[str(path.relative_to(folder))] = body
            if body.startswith(b"SQLite format 3\0"):
                places[f"{path.name}, unpacked"] = b"\n".join(_values(path))
    return places


def _values(database: Path) -> Iterable[bytes]:
    with sqlite3.connect(database) as opened:
        tables = opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for row in opened.execute(f'SELECT * FROM "{table}"'):
                for value in row:
                    body = value if isinstance(value, bytes) else str(value).encode()
                    yield zlib.decompress(body[2:]) if body.startswith(b"\0z") else body
    opened.close()
