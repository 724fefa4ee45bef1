"""Shared memory for a client and the daemon: docs/slots.md."""
