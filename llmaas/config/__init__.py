"""Settings: what can be set, from which file, variable or flag, and what a value may be."""
