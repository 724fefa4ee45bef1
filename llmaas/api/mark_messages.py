"""The requests by which a cluster learns where conversations are held: what the daemon holds, and what an app's text
would be found by.

Law: pure. A mark is the first bytes of a chunk key, and the chain of keys begins at the app: marks of one app's text
are never those of another's.
"""

from __future__ import annotations

from llmaas.api.names import check_messages
from llmaas.frozen import frozen
from llmaas.records import Message

MOST_MARKS = 1 << 16
"""That one reply has."""
MOST_ROOTS = 16
ROOT_BYTES = 16
MARK_BYTES = 8


@frozen
class ListMarks:
    """What chunks the daemon has of the contexts of the operator's own user, those that were used last."""


@frozen
class MarksOf:
    """By what chunks a conversation that begins with these messages would be found, under each of the ``roots``.
    ``answer``: the model's answer follows."""

    messages: tuple[Message, ...]
    roots: tuple[bytes, ...]
    answer: bool = True

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("field 'messages': one message at least is wanted")
        check_messages(self.messages)
        if not 0 < len(self.roots) <= MOST_ROOTS:
            raise ValueError(f"field 'roots': 1 to {MOST_ROOTS} are wanted, not {len(self.roots)}")
        for i, root in enumerate(self.roots):
            if len(root) != ROOT_BYTES:
                raise ValueError(f"field 'roots[{i}]': {ROOT_BYTES} bytes are wanted, not {len(root)}")


@frozen
class ListedMarks:
    """Marks of chunks that are in the POOL or on DISK, 8 bytes each, of some chunks of each context."""

    fingerprint: str
    """Of the model, which the roots of the keys are made of."""
    marks: bytes
    n_left_out: int
    """Contexts whose marks had no room."""


@frozen
class FoundMarks:
    """``chains``: for each root, the marks of the conversation's full chunks, 8 bytes each."""

    n_tokens: int
    """Of the whole of it."""
    chains: tuple[bytes, ...]


MarkRequest = ListMarks | MarksOf
MARK_OPERATIONS: dict[str, type[MarkRequest]] = {"list_marks": ListMarks, "marks_of": MarksOf}
