"""Real text for prompts: the Python reference manual, which every Python carries."""

from __future__ import annotations

import random

from llmaas.engine.base import Engine


class Texts:
    """Real text, a piece after the other and none twice: what begins alike would share chunks."""

    def __init__(self, engine: Engine, n_tokens: int, seed: int) -> None:
        """``n_tokens``: all that will be taken, or a little more."""
        self._engine = engine
        self._tokens = engine.tokenize(prose(engine, n_tokens, seed), special=False, bos=False)

    def take(self, n_tokens: int) -> str:
        """About ``n_tokens`` of text."""
        taken, self._tokens = self._tokens[:n_tokens], self._tokens[n_tokens:]
        if len(taken) < n_tokens:
            raise ValueError("there is no more text")
        return b"".join(self._engine.piece(token) for token in taken).decode("utf-8", "ignore")


def prose(engine: Engine, n_tokens: int, seed: int) -> str:
    """About ``n_tokens`` of real text: the Python reference manual, which every Python carries, in an order by seed."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    random.Random(seed).shuffle(names)
    tokens: list[int] = []
    for name in names:
        tokens += engine.tokenize(topics[name], special=False, bos=False)
        if len(tokens) >= n_tokens:
            return b"".join(engine.piece(token) for token in tokens[:n_tokens]).decode("utf-8", "ignore")
    raise ValueError(f"the manual has only {len(tokens)} tokens")
