"""The store that needs nothing but a file: SQLite, one process, group commit."""

from perdure.adapters.stores.sqlite.reader import SqliteReader
from perdure.adapters.stores.sqlite.store import SqliteStore

__all__ = ["SqliteReader", "SqliteStore"]
