"""The catalog that many nodes share: a PostgreSQL database."""

from perdure.adapters.catalog.postgres.catalog import PostgresCatalog

__all__ = ["PostgresCatalog"]
