"""The store: tokens, chunks and keys on disk, crash-safe. Law: it knows neither chunk formats nor policies."""
