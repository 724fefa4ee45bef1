"""Answers that keep to a grammar or a JSON schema, on any engine whose tokens have bytes.

``compiler.Constraints`` is what engines use. Two things follow a constraint token by token: ``guidance`` (llguidance,
where it is installed; JSON schemas only) and ``machine`` (plain Python; GBNF, and JSON schemas without llguidance).
"""
