"""The edge: the wire protocol, the Unix socket server, and the clients.

Law: this package's own module imports nothing, so that the pure rooms in it (``wire``, ``messages``) can be
imported from any floor above theirs. The protocol is described in ``docs/protocol.md``.
"""
