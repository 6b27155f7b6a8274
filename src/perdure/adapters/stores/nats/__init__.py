"""A store in JetStream: no database, and as many copies as its streams have replicas."""

from perdure.adapters.stores.nats.store import NatsStore

__all__ = ["NatsStore"]
