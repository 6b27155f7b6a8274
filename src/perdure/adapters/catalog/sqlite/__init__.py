"""The catalog in a file of its own: SQLite, one process, group commit."""

from perdure.adapters.catalog.sqlite.catalog import SqliteCatalog

__all__ = ["SqliteCatalog"]
