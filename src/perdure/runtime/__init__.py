"""The shell: it accepts, claims, decides, commits and dispatches. It never executes a call."""
