"""The tables of a store."""

from __future__ import annotations

from perdure.adapters.sqlite.schema import Schema

SCHEMA = Schema(application_id=0x50524452, package=__package__)
"""Its files say `PRDR` in their header."""
