"""Other runtimes, doing the same work in environments of their own (see environments.py)."""
