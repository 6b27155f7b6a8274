"""The store that many nodes share: PostgreSQL, one round trip for the steps of many sessions."""

from perdure.adapters.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
