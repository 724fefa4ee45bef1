"""Models on this machine: which there are, where their files come from, and how they get into memory quickly."""
