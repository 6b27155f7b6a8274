"""A catalog in JetStream, so that a server needs nothing but NATS."""

from perdure.adapters.catalog.nats.catalog import NatsCatalog

__all__ = ["NatsCatalog"]
