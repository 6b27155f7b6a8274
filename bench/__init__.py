"""What durability costs, measured side by side. See docs/internals/performance.md."""
