"""Traces: which app called when, for which context, with how many tokens. Their format, and programs that make them."""
