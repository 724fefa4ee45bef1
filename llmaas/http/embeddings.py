"""``/v1/embeddings``, and Ollama's ``/api/embed`` and ``/api/embeddings``.

Law: a response is written vector by vector: the numbers as text are never all in memory.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator, Sequence

import msgspec

from llmaas.api.async_client import AsyncClient
from llmaas.api.embed_message import MAX_TEXTS
from llmaas.errors import ContextTooLong
from llmaas.frozen import frozen
from llmaas.http.call import JSON, HttpCall
from llmaas.http.edge import Edge, ends_with_client
from llmaas.http.embeddings_types import EmbeddingRequest, EmbeddingUsage, OllamaEmbeddingRequest, OllamaEmbedRequest
from llmaas.http.errors import HttpError
from llmaas.http.facts import ServedModel
from llmaas.records import Embeddings

MOST_INPUTS = 2048
"""Texts of one request, as OpenAI's API has it."""
MOST_VALUES = 4 << 20
"""Numbers of one response."""
_PART_CHARACTERS = 1 << 18
"""Characters of one request to the daemon, unless it is one text."""
_PIECE = 1 << 16
"""Bytes of the response that are sent at a time."""


@frozen
class _Vectors:
    """``n_tokens`` are those of all texts."""

    packed: list[bytes]
    n_tokens: int

    def as_lists(self) -> Iterator[bytes]:
        """Each vector as a JSON list. Nine digits tell all floats of 32 bits apart."""
        for each in self.packed:
            yield b"[" + b",".join(b"%.9g" % value for value in _floats(each)) + b"]"

    def as_base64(self) -> Iterator[bytes]:
        for each in self.packed:
            yield b'"' + base64.b64encode(each) + b'"'


async def openai_embeddings(edge: Edge, call: HttpCall) -> None:
    request = await call.read(EmbeddingRequest)
    if request.encoding_format not in (None, "float", "base64"):
        raise HttpError(400, "encoding_format is one of float, base64", param="encoding_format")
    texts = _texts(request.input)
    if not texts or not all(texts):
        raise HttpError(400, "input is a text, or a list of texts; each has one character at least", param="input")
    async with edge.daemon(call, request.model) as (client, facts), ends_with_client(call):
        _check_model(facts, request.model)
        found = await _embedded(client, texts, request.dimensions, truncate=False)
    vectors = found.as_base64() if request.encoding_format == "base64" else found.as_lists()
    items = (b'{"object":"embedding","index":%d,"embedding":%s}' % (i, each) for i, each in enumerate(vectors))
    usage = EmbeddingUsage(found.n_tokens, found.n_tokens)
    await _reply(call, b'{"object":"list","data":[', items, {"model": request.model or facts.id, "usage": usage})


async def ollama_embed(edge: Edge, call: HttpCall) -> None:
    """Without a text it says that the model is loaded, as Ollama does."""
    request = await call.read(OllamaEmbedRequest)
    begin = edge.clock.now()
    texts = _texts(request.input)
    if len(texts) > 1 and not all(texts):
        raise HttpError(400, "each text has one character at least", param="input")
    async with edge.daemon(call, request.model) as (client, facts), ends_with_client(call):
        _check_model(facts, request.model)
        given, cut = [text for text in texts if text], request.truncate is not False
        found = await _embedded(client, given, request.dimensions, truncate=cut)
    tail = {
        "model": request.model or facts.id,
        "total_duration": int((edge.clock.now() - begin) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": found.n_tokens,
    }
    await _reply(call, b'{"embeddings":[', found.as_lists(), tail)


async def ollama_embeddings(edge: Edge, call: HttpCall) -> None:
    """The older endpoint, for one text."""
    request = await call.read(OllamaEmbeddingRequest)
    async with edge.daemon(call, request.model) as (client, facts), ends_with_client(call):
        _check_model(facts, request.model)
        found = await _embedded(client, [request.prompt] if request.prompt else [], None, truncate=True)
    await call.reply(b'{"embedding":%s}' % next(found.as_lists(), b"[]"))


async def _embedded(client: AsyncClient, texts: Sequence[str], dimensions: int | None, *, truncate: bool) -> _Vectors:
    """A vector for each text, in as many requests to the daemon as it takes. Raises HttpError, LlmaasError."""
    if len(texts) > MOST_INPUTS:
        what = f"there may be {MOST_INPUTS} texts, not {len(texts)}. Send several requests."
        raise HttpError(400, what, param="input")
    packed: list[bytes] = []
    n_tokens = 0
    for part in in_parts(texts):
        try:
            found = await client.embed(part, truncate=truncate)
        except ContextTooLong as error:
            where = f"texts {len(packed)} to {len(packed) + len(part) - 1}: " if len(part) < len(texts) else ""
            what = f"{where}{error.message}. {error.hint}"
            raise HttpError(400, what, param="input", code="context_length_exceeded") from None
        if found.dimensions * len(texts) > MOST_VALUES:
            most = MOST_VALUES // found.dimensions
            raise HttpError(400, f"this model's embeddings of {most} texts fit into a response", param="input")
        packed += _cut(found, dimensions)
        n_tokens += sum(found.n_tokens)
    return _Vectors(packed, n_tokens)


def in_parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in their order, in lists that are not too long."""
    part: list[str] = []
    n = 0
    for text in texts:
        if part and (len(part) == MAX_TEXTS or n + len(text) > _PART_CHARACTERS):
            yield part
            part, n = [], 0
        part.append(text)
        n += len(text)
    if part:
        yield part


def _cut(found: Embeddings, dimensions: int | None) -> list[bytes]:
    """Each vector, or its first ``dimensions`` values, made as long as 1 again. Raises HttpError."""
    n, width = len(found.n_tokens), 4 * found.dimensions
    each = [found.packed[i * width : (i + 1) * width] for i in range(n)]
    if dimensions is None or dimensions == found.dimensions:
        return each
    if not 0 < dimensions < found.dimensions:
        what = f"dimensions goes from 1 to {found.dimensions} with this model, not {dimensions}"
        raise HttpError(400, what, param="dimensions")
    return [_normalised(packed[: 4 * dimensions]) for packed in each]


def _normalised(packed: bytes) -> bytes:
    values = _floats(packed)
    norm = math.sqrt(sum(value * value for value in values)) or 1.0
    return struct.pack(f"<{len(values)}f", *(value / norm for value in values))


def _floats(packed: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(packed) // 4}f", packed)


def _texts(given: str | Sequence[object] | None) -> list[str]:
    """Raises HttpError for what is not text."""
    found = [given] if isinstance(given, str) else list(given or ())
    texts = [each for each in found if isinstance(each, str)]
    if len(texts) < len(found):
        what = "input is a text, or a list of texts: token ids are not taken, since they are another model's."
        raise HttpError(400, what, param="input")
    return texts


def _check_model(facts: ServedModel, model: str | None) -> None:
    if facts.adapter_of(model):
        what = "embeddings are those of the model without an adapter. Leave out what follows the colon."
        raise HttpError(400, what, param="model")


async def _reply(call: HttpCall, head: bytes, items: Iterator[bytes], tail: dict[str, object]) -> None:
    """An object whose first field ends with a list of ``items``; ``tail`` are its other fields."""
    await call.start(200, JSON)
    piece, comma = bytearray(head), b""
    for item in items:
        piece += comma + item
        comma = b","
        if len(piece) > _PIECE:
            await call.write(bytes(piece))
            piece.clear()
    await call.write(bytes(piece) + b"]," + msgspec.json.encode(tail)[1:])
    await call.end()
