"""Several nodes as one: where contexts are, where calls go, and the entry through which programs use them all."""
