"""The codec: KV slabs to bytes at 16 to 2 bits per value, and back. Law: pure; it knows no files."""

from llmaas.old_paths import keep_old_names

keep_old_names(__name__)
