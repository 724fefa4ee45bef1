"""The llama.cpp engine. Law: only ``lib`` imports llama_cpp; only the command line imports this package."""

from llmaas.old_paths import keep_old_names

keep_old_names(__name__)
