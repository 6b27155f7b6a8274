"""What everything that we keep in a PostgreSQL database needs: connections, checks, migrations."""
