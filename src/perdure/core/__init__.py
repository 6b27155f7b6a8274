"""The pure core: rules, facts and their fold. No I/O, no clock, no chance."""
