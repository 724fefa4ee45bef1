"""The operations that take a context from one model or daemon to another, and that tell where one would be found.

Law: pure; as ``operations``.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmaas.api.given_messages import Messages, as_messages
from llmaas.api.mark_messages import FoundMarks, ListedMarks, ListMarks, MarksOf
from llmaas.api.operation import Operation, checked, record
from llmaas.api.transfer_messages import MOST_CHUNK_BYTES, Export, ExportChunks, Import, ImportChunks, MoveToNode
from llmaas.api.transfer_records import ChunkPiece, ExportedChunks, ImportedChunks, MovedContext
from llmaas.records import ContextInfo, ExportedContext


def export_context(context: str) -> Operation[ExportedContext]:
    """All that a context consists of, for ``import_context`` of a client of another model. The context stays."""
    return Operation(checked(Export, context), record(ExportedContext))


def import_context(
    exported: ExportedContext, *, name: str | None = None, adapter: str = "", ttl: float | None = None
) -> Operation[ContextInfo]:
    """Make a context that begins as one that was exported, perhaps by another model, under its name or another.

    For a model of the same vocabulary it has the same tokens; for another one its messages are tokenized anew, by this
    model's chat template. Its KV is computed when it is needed. Raises ContextExists, ContextTooLong, QuotaExceeded,
    and ModelMismatch if the vocabulary is another and a part of it is not stored as text.
    """
    return Operation(checked(Import, exported, name, adapter, ttl), record(ContextInfo))


def export_chunks(
    context: str, indices: Iterable[int] = (), *, offset: int = 0, n_bytes: int = MOST_CHUNK_BYTES // 2
) -> Operation[ExportedChunks]:
    """Coded chunks of a context, as they are stored: those of ``indices`` that are, ``n_bytes`` of them at most. Ask
    again for the others, from ``n_done`` of the result on; a chunk that is larger comes in parts. Without ``indices``:
    what is to be known before."""
    return Operation(checked(ExportChunks, context, tuple(indices), offset, n_bytes), record(ExportedChunks))


def import_chunks(
    context: str, root: bytes, kv: bytes, pieces: Iterable[ChunkPiece] = (), *, trusted: bool = False
) -> Operation[ImportedChunks]:
    """Give chunks to a context that was imported, so that its KV need not be computed. Without any: which are missing.

    A chunk is taken if this daemon has coded it for this app and these tokens; with ``trusted`` also any other that the
    model can use. Then it is for the caller to know where it comes from: the KV of a chunk decides what the model reads
    at its place, in all contexts of the app that begin with the same tokens. What is refused is computed when it is
    needed.
    """
    request = checked(ImportChunks, context, root, kv, tuple(pieces), trusted)
    return Operation(request, record(ImportedChunks))


def move(context: str, node: str, *, name: str | None = None, way: str = "both") -> Operation[MovedContext]:
    """Take a context to another node, which the operator has paired this one with (``llmaas node pair``), with its
    chunks; here it is no more then. An answer that it is giving goes on there, and is told here to its end, unless it
    has stop strings, an idempotency key or ``on_full`` "shift": then it ends before. Who calls later gets
    UnknownContext. ``way``: "tokens": only these go, all is computed there; "chunks": all coded chunks go; "both": of a
    context that is answered, those that the link brings sooner than they are computed.

    Raises UnknownNode, NodeUnreachable and NotTrusted, and what the other node says: ContextExists, QuotaExceeded,
    ModelMismatch. Then the context is here as before. Only after Moving it is not known which of the two has it: nobody
    can use it until the other node can be asked.
    """
    return Operation(checked(MoveToNode, context, node, name, way), record(MovedContext))


def list_marks() -> Operation[ListedMarks]:
    """What chunks the daemon has of its user's conversations, in 8 bytes each: by these a cluster sends a conversation
    to the node that holds most of its beginning. For the operator (``admin``)."""
    return Operation(ListMarks(), record(ListedMarks))


def marks_of(messages: Messages, roots: Iterable[bytes], *, answer: bool = True) -> Operation[FoundMarks]:
    """By what marks a conversation that begins with these messages would be found, if its chunk keys began at each of
    the ``roots``. Nothing is kept of it, and nothing of what the daemon holds is looked at. ``answer``: the model's
    answer follows."""
    return Operation(checked(MarksOf, as_messages(messages), tuple(roots), answer), record(FoundMarks))
