"""Policies: rules as finite data, the gate that they are, and what can be said of them.

`rules` is what a policy may hold, `reading` makes it out of TOML or JSON, `conditions` says when a
rule holds, `policy` is the gate. `standing` answers what a gate asks with what people approved
ahead. `regions` cuts what can be asked at the constants of the rules: `compare` and the adapters
that prove stand on it.
"""
