"""Where a server's catalog is kept."""
