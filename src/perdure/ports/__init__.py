"""The promises that the runtime relies on and the adapters keep: narrow, in the domain's words."""
