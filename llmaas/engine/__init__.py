"""Engines: the port and its implementations."""
