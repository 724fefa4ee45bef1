"""Contexts beyond one daemon: archives, and what goes from one to another."""
