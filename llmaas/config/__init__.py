"""Settings: what can be set, from which file, variable or flag, and what a value may be."""

from llmaas.old_paths import keep_old_names

keep_old_names(__name__)
