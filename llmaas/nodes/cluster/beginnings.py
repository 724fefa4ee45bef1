"""Where conversations have begun that programs send as a whole each time: they go on at the same node.

Law: pure. Hashes only, of every beginning of a conversation, and a bounded number of them; what is forgotten begins
anew at any node.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from llmaas.records import Message

MOST = 16_384
_TOKEN_CHARS = 4


class Beginnings:
    """
    >>> seen, asked = Beginnings(), [Message("user", "Hello there!")]
    >>> seen.note("mail", asked, "desk")
    >>> seen.near("mail", [*asked, Message("assistant", "Hi!"), Message("user", "Bye")])
    ('desk', 4)
    >>> seen.near("notes", asked)
    ('', 0)
    """

    def __init__(self) -> None:
        self._nodes: OrderedDict[bytes, str] = OrderedDict()

    def note(self, app: str, messages: Sequence[Message], node: str) -> None:
        for key, _ in _keys(app, messages):
            self._nodes[key] = node
            self._nodes.move_to_end(key)
        while len(self._nodes) > MOST:
            self._nodes.popitem(last=False)

    def near(self, app: str, messages: Sequence[Message]) -> tuple[str, int]:
        """The node where the longest beginning was served, and about how many tokens that has; "" if none was."""
        for key, n_chars in reversed(_keys(app, messages)):
            if (node := self._nodes.get(key)) is not None:
                return node, n_chars // _TOKEN_CHARS + 1
        return "", 0


def _keys(app: str, messages: Sequence[Message]) -> list[tuple[bytes, int]]:
    keys, before, n_chars = [], app.encode(), 0
    for message in messages:
        role, content = (text.encode("utf-8", "surrogatepass") for text in (message.role, message.content.strip()))
        hasher = blake2b(len(before).to_bytes(8, "little") + before, digest_size=16)
        hasher.update(len(role).to_bytes(8, "little") + role + content)
        before, n_chars = hasher.digest(), n_chars + len(message.content)
        keys.append((before, n_chars))
    return keys
