"""Benches of single operations: ``pytest bench/micro``."""
