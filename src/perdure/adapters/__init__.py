"""The outside world behind the ports. Only `perdure.bootstrap` and `perdure.testing` name these."""
