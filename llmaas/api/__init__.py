"""What apps and the daemon say to each other: the wire protocol, the Unix socket server, and the clients.

Law: this module imports nothing, so that importing one of the package's pure modules (``wire``, ``messages``) imports
no socket code. ``docs/protocol.md`` describes the protocol.
"""
