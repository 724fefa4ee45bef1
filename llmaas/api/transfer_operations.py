"""The operations that take a context from one model to another.

Law: pure; as ``operations``.
"""

from __future__ import annotations

from llmaas.api.operation import Operation, checked, record
from llmaas.api.transfer_messages import Export, Import
from llmaas.records import ContextInfo, ExportedContext


def export_context(context: str) -> Operation[ExportedContext]:
    """All that a context consists of, for ``import_context`` of a client of another model. The context stays."""
    return Operation(checked(Export, context), record(ExportedContext))


def import_context(exported: ExportedContext, *, name: str | None = None, adapter: str = "") -> Operation[ContextInfo]:
    """Make a context that begins as one that was exported, perhaps by another model, under its name or another.

    For a model of the same vocabulary it has the same tokens; for another one its messages are tokenized anew, by this
    model's chat template. Its KV is computed when it is needed. Raises ContextExists, ContextTooLong, QuotaExceeded,
    and ModelMismatch if the vocabulary is another and a part of it is not stored as text.
    """
    return Operation(checked(Import, exported, name, adapter), record(ContextInfo))
