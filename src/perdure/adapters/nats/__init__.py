"""What everything that keeps or sends something with NATS shares: the connection and the log."""
