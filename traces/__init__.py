"""Traces of calls to replay, and the programs that make them (traces/README.md)."""
