"""Real text for prompts: the Python reference manual, which every Python carries."""

from __future__ import annotations

import random

from llmaas.engine.base import Engine


class Texts:
    """Real text in pieces, none of it twice, because texts that begin alike would share chunks."""

    def __init__(self, engine: Engine, n_tokens: int, seed: int) -> None:
        """``n_tokens``: at least the tokens of all pieces together."""
        self._engine = engine
        self._tokens = engine.tokenize(prose(engine, n_tokens, seed), special=False, bos=False)

    def take(self, n_tokens: int) -> str:
        """The next piece, of about ``n_tokens``. Raises ValueError when the text is used up."""
        taken, self._tokens = self._tokens[:n_tokens], self._tokens[n_tokens:]
        if len(taken) < n_tokens:
            raise ValueError("there is no more text")
        return b"".join(self._engine.piece(token) for token in taken).decode("utf-8", "ignore")


def prose(engine: Engine, n_tokens: int, seed: int) -> str:
    """About ``n_tokens`` of real text: the manual's topics, in an order that ``seed`` chooses.

    Raises ValueError if the manual has less text.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    random.Random(seed).shuffle(names)
    tokens: list[int] = []
    for name in names:
        tokens += engine.tokenize(topics[name], special=False, bos=False)
        if len(tokens) >= n_tokens:
            return b"".join(engine.piece(token) for token in tokens[:n_tokens]).decode("utf-8", "ignore")
    raise ValueError(f"the manual has only {len(tokens)} tokens")
