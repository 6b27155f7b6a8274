"""Shipped to users: fakes, faults and suites for testing agents and adapters."""
