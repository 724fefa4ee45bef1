"""``llmaas demo``: eight apps share one model, and a third of the memory that they need."""
