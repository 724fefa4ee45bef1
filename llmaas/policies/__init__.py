"""Policies: the decisions of the service as pure functions and small state machines.

Law: a policy is pure. It reads no clock, does no I/O and draws no random numbers: it computes a proposal from the
values that it is given, and the ledger checks the proposal. A policy that users can choose has a name in one table
(``EVICTION``, ``SCHEDULING``, ``SPLIT``); to add one, write it beside its siblings and enter it in their table.
"""
