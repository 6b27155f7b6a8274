"""What every SQLite file of ours needs, whatever is kept in it."""
