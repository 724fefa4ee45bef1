"""App tokens: what one looks like, and the hash by which the daemon knows it.

Law: pure. A token is 256 random bits, so that its SHA-256 tells nothing of it: no slow hash is needed.
"""

from __future__ import annotations

import re

PREFIX = "llmaas_"
"""What every token begins with, so that people and scanners for secrets recognise one."""
MAX_TOKEN = 256
"""Characters of what a client may send as a token."""
TOKEN_BYTES = 32
_TOKEN = re.compile(PREFIX + r"[0-9a-f]{64}")


def token_of(secret: bytes) -> str:
    """The token that ``TOKEN_BYTES`` random bytes make.

    >>> token_of(bytes(32))[:15]
    'llmaas_00000000'
    """
    return PREFIX + secret.hex()


def is_token(text: str) -> bool:
    """Whether ``text`` has the form of a token.

    >>> is_token(token_of(bytes(32))), is_token("llmaas_1"), is_token("sk-no-key")
    (True, False, False)
    """
    return _TOKEN.fullmatch(text) is not None


def holds_token(text: str) -> bool:
    """Whether there is something like a token in ``text``, be it damaged.

    >>> holds_token("Bearer LLMAAS_ab"), holds_token("Bearer ollama")
    (True, False)
    """
    return PREFIX in text.lower()


def token_hash(token: str) -> bytes:
    """The SHA-256 of a token, whatever its form."""
    import hashlib  # the daemon's part: a client has no use for it, and would wait for it

    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
