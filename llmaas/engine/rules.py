"""What every engine refuses, in the same words: the argument rules of the port ``engine/base.py``.

Law: pure functions that raise ValueError or return None. They look at positions and tokens, never at a model.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from llmaas.engine.base import BatchItem, EmbeddingFacts


def check_seq(seq: int, n_seqs: int) -> None:
    if not 0 <= seq < n_seqs:
        raise ValueError(f"sequence {seq} is not in 0 .. {n_seqs - 1}")


def check_token(token: int, n_vocab: int) -> None:
    if not 0 <= token < n_vocab:
        raise ValueError(f"token {token} is not in the vocabulary of {n_vocab}")


def check_step(
    items: Sequence[BatchItem], lengths: Sequence[int], samplers: Container[int], n_vocab: int, max_batch: int
) -> None:
    """Check the items of one step. ``lengths``: tokens that each sequence has; ``samplers``: numbers in use.

    Runs before every step of every engine, so it calls no function for each item.
    """
    total, n_seqs = 0, len(lengths)
    for item in items:
        if not 0 <= item.seq < n_seqs:
            raise ValueError(f"sequence {item.seq} is not in 0 .. {n_seqs - 1}")
        if item.pos != lengths[item.seq]:
            raise ValueError(f"sequence {item.seq} is {lengths[item.seq]} long: its next position is not {item.pos}")
        if not item.tokens:
            raise ValueError("an item holds at least one token")
        if min(item.tokens) < 0 or max(item.tokens) >= n_vocab:
            raise ValueError(f"a token is not in the vocabulary of {n_vocab}")
        if item.sampler is not None and item.sampler not in samplers:
            raise ValueError(f"there is no sampler {item.sampler}")
        total += len(item.tokens)
    if not 0 < total <= max_batch:
        raise ValueError(f"a step holds 1 .. {max_batch} tokens, not {total}")
    if len({item.seq for item in items}) != len(items):
        raise ValueError("a sequence may appear once in a step")


def check_embed(facts: EmbeddingFacts, pos: int, tokens: Sequence[int], length: int, n_vocab: int) -> None:
    """Check the next tokens of a text that has ``length`` tokens."""
    if pos and facts.whole:
        raise ValueError(f"all of a text is embedded by one call: its next position is not {pos}")
    if pos not in (0, length):
        raise ValueError(f"the text is {length} long: its next position is not {pos}")
    if not 0 < len(tokens) <= facts.slice_tokens:
        raise ValueError(f"1 .. {facts.slice_tokens} tokens are embedded at a time, not {len(tokens)}")
    if pos + len(tokens) > facts.limit:
        raise ValueError(f"a text has {facts.limit} tokens at most, not {pos + len(tokens)}")
    if min(tokens) < 0 or max(tokens) >= n_vocab:
        raise ValueError(f"a token is not in the vocabulary of {n_vocab}")


def check_sampler(sampler: int) -> None:
    if sampler < 0:
        raise ValueError(f"samplers are numbered from 0, not {sampler}")


def check_drop(start: int) -> None:
    if start < 0:
        raise ValueError(f"cannot drop from position {start}")


def check_copy(lengths: Sequence[int], src: int, dst: int, stop: int) -> None:
    if lengths[dst]:
        raise ValueError(f"sequence {dst} is not empty")
    if not 0 <= stop <= lengths[src]:
        raise ValueError(f"sequence {src} has {lengths[src]} positions, not {stop}")


def check_export(lengths: Sequence[int], seq: int, start: int, stop: int) -> None:
    if not 0 <= start < stop <= lengths[seq]:
        raise ValueError(f"sequence {seq} has no positions {start} .. {stop - 1}")


def check_load(lengths: Sequence[int], seq: int, start: int) -> None:
    if start != lengths[seq]:
        raise ValueError(f"sequence {seq} has {lengths[seq]} positions: cannot load at {start}")


def check_export_state(lengths: Sequence[int], seq: int) -> None:
    if not lengths[seq]:
        raise ValueError(f"sequence {seq} is empty: it has no state")


def check_load_state(lengths: Sequence[int], seq: int, n_tokens: int) -> None:
    if lengths[seq]:
        raise ValueError(f"sequence {seq} is not empty: no state can be loaded")
    if n_tokens < 1:
        raise ValueError(f"a state is of one token at least, not {n_tokens}")


def check_blank(n_tokens: int) -> None:
    if n_tokens < 1:
        raise ValueError(f"a slab holds at least one token, not {n_tokens}")
