"""Requests and responses of ``/v1/embeddings``, ``/api/embed`` and ``/api/embeddings``.

Law: values only, as the wire has them. Fields that are not listed are accepted and ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    input: str | list[Any] | None = None
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None


class EmbeddingItem(msgspec.Struct):
    """``embedding`` is base64 of little-endian floats of 32 bits if ``encoding_format`` is base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


class OllamaEmbedRequest(msgspec.Struct, kw_only=True):
    input: str | list[Any] | None = None
    model: str | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: str | float | None = None


class OllamaEmbedReply(msgspec.Struct):
    """Durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingRequest(msgspec.Struct, kw_only=True):
    """Of the older endpoint, for one text."""

    prompt: str | None = None
    model: str | None = None
    keep_alive: str | float | None = None


class OllamaEmbeddingReply(msgspec.Struct):
    embedding: list[float]
