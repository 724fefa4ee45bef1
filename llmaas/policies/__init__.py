"""Policies: pure decisions, named in one literal table each.

Law: a policy proposes from values it is given and never touches the world; the ledger checks what it
proposes. To add one: write it beside its siblings and enter it in that module's table.
"""
