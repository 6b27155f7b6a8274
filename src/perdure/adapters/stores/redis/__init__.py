"""Sessions in Redis: one server that several nodes share, one script that writes."""

from perdure.adapters.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
