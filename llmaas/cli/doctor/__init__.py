"""``llmaas doctor``: what works on this machine, what will not, and why."""
