"""What a model does, by what its file says of itself: it writes text, makes embeddings only, or neither.

Law: pure. The names of architectures are those of llama.cpp (``llama-arch.cpp``).
"""

from __future__ import annotations

import enum


class ModelKind(enum.Enum):
    """The value is for people."""

    WRITER = "writes text"
    """One token after another; embeddings of it are to be had, too."""
    EMBEDDER = "makes embeddings only"
    """Its tokens see what follows them: what it computes says what a text means, and not what comes next."""
    OTHER = "is not served"


_BERTS = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "modern-bert", "eurobert")
_EMBEDDERS = frozenset([*_BERTS, "gemma-embedding", "t5encoder"])
"""Kinds whose tokens see what follows them, whatever else the file says."""
_OTHERS = {
    "t5": "it has an encoder and a decoder",
    "dream": "it writes a text in no order (diffusion)",
    "llada": "it writes a text in no order (diffusion)",
    "llada-moe": "it writes a text in no order (diffusion)",
    "rnd1": "it writes a text in no order (diffusion)",
    "eagle3": "it only drafts for another model",
    "dflash": "it only drafts for another model",
    "wavtokenizer-dec": "it makes sound",
    "clip": "it reads pictures for another model",
}
RANK = 4
"""How a file says that its model tells how well two texts fit together (``pooling_type``)."""


def kind_of(architecture: str, causal: bool | None, pooling: int | None = None) -> tuple[ModelKind, str]:
    """What a model of this ``architecture`` does, and of one that is not served why. ``causal``, ``pooling``: what the
    file says of its attention and of how its embeddings are pooled; None: nothing.

    >>> kind_of("llama", None)[0].value, kind_of("llama", False)[0].value, kind_of("bert", None)[0].value
    ('writes text', 'makes embeddings only', 'makes embeddings only')
    >>> kind_of("t5", None)
    (<ModelKind.OTHER: 'is not served'>, 'it has an encoder and a decoder')
    """
    if architecture in _OTHERS:
        return ModelKind.OTHER, _OTHERS[architecture]
    if causal is not False and architecture not in _EMBEDDERS:
        return ModelKind.WRITER, ""
    if pooling == RANK:
        return ModelKind.OTHER, "it ranks texts, and makes no embeddings of them"
    return ModelKind.EMBEDDER, ""
