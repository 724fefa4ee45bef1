"""The llama.cpp engine. Law: only ``lib`` imports llama_cpp; only the command line imports this package."""
