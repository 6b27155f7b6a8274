"""The cluster of nodes that have nothing in common but a PostgreSQL database."""

from perdure.adapters.cluster.postgres.cluster import PostgresCluster

__all__ = ["PostgresCluster"]
