"""Where facts are kept: one package or module per driver of `ports.session_store`."""
