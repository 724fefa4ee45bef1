"""All tokens at once: which of a vocabulary a grammar's state allows.

Law: each place of the grammar is asked once for each byte, however many tokens go that way.

It goes down the vocabulary's trie level by level, all nodes of a level at once in numpy: 3 ms where every token of
49,152 is allowed. One token after the other, in Python, took 100 ms. It can stop after each of the grammar's places and
go on later, since others wait for the engine.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from typing import TypeVar

import numpy as np

from llmaas.engine.constraint.port import Mask
from llmaas.engine.constraint.vocabulary import Vocabulary

State = TypeVar("State")

_NOWHERE, _UNKNOWN = -1, -2
"""In place of a state's index: the bytes are not allowed; they are, but it would take too much to go on by them."""


class Unknown(enum.Enum):
    """Instead of the state that a byte leads to."""

    TOO_AMBIGUOUS = enum.auto()


def mask_from(
    start: State, step: Callable[[State, int], State | Unknown | None], vocabulary: Vocabulary
) -> Generator[None, None, Mask]:
    """Returns the tokens (n_vocab) whose bytes lead somewhere from ``start``, if only to something unknown. Yields
    after each step.

    ``step``: where a byte leads from a state; None: nowhere. Equal states are one object.
    """
    mask = np.zeros(vocabulary.n_vocab, np.bool_)
    states, here = [start], np.zeros(1, np.intp)
    """The states at the last level, and for each of its nodes the index of one."""
    for level in vocabulary.levels:
        here = here[level.parents]
        live = here >= 0
        keys, which = np.unique(here[live] * 256 + level.byte[live], return_inverse=True)
        indices: dict[State, int] = {}
        following = np.empty(len(keys), np.intp)
        for i, key in enumerate(keys.tolist()):
            state = step(states[key // 256], key % 256)
            if state is None:
                following[i] = _NOWHERE
            elif isinstance(state, Unknown):
                following[i] = _UNKNOWN
            else:
                following[i] = indices.setdefault(state, len(indices))
            yield
        here[live] = following[which]
        mask[level.tokens] = here[level.at] != _NOWHERE
        states = list(indices)
        if (here == _NOWHERE).all():
            break
    return mask
