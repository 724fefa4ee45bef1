"""Replay of a cluster: many nodes in virtual time, and the policy that places calls among them."""
