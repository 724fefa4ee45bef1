"""The request for embeddings.

Law: pure.
"""

from __future__ import annotations

from llmaas.frozen import frozen

MAX_TEXTS = 128
"""Texts of one request."""


@frozen
class Embed:
    """A vector for each text. ``truncate``: of a text that is too long, for its beginning."""

    texts: tuple[str, ...]
    truncate: bool = False

    def __post_init__(self) -> None:
        if not 0 < len(self.texts) <= MAX_TEXTS:
            raise ValueError(f"field 'texts': 1 to {MAX_TEXTS} texts are wanted, not {len(self.texts)}")
        for i, text in enumerate(self.texts):
            if not isinstance(text, str) or not text:
                raise ValueError(f"field 'texts[{i}]': a text has one character at least")
