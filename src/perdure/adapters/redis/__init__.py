"""What every Redis of ours needs, whatever is kept in it: an address, a line, its settings.

Importing it without the extra `redis` raises `InvalidInput`.
"""

from perdure.core.errors import InvalidInput

try:
    import redis as _driver  # noqa: F401
except ImportError:
    raise InvalidInput(
        "what is kept in Redis needs an extra: pip install 'perdure[redis]'"
    ) from None
