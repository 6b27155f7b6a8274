"""The ways in which `perdure.testing.mutants` breaks the engine."""
