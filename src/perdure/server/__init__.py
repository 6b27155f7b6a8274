"""The server: what turns a runtime into a service for other programs."""
