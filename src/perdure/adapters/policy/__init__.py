"""Policies in the hands of other engines: Cedar (extra `policy`) and Z3 (extra `prove`)."""
