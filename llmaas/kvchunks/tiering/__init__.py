"""Moves chunks between the engine's cells, RAM and disk, on threads of its own."""
