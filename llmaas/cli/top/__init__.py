"""``llmaas top``: what the daemon does, live."""
