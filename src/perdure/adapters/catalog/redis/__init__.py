"""The catalog in a Redis that several servers share, so that they need nothing else."""

from perdure.adapters.catalog.redis.catalog import RedisCatalog

__all__ = ["RedisCatalog"]
