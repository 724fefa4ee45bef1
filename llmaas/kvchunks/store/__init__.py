"""The store: tokens, chunks and keys on disk, crash-safe. Law: it knows neither chunk formats nor policies."""

from llmaas.old_paths import keep_old_names

keep_old_names(__name__)
