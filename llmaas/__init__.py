"""llmaas: one language model, served to every app on a device as a system service.

This is the public face: the clients, the values that they take and return, and the errors that they raise. Each name is
imported from its module when it is first used, so that ``import llmaas`` alone costs nothing.

>>> from llmaas import Message, Sampling
>>> Message("user", "Which folder?")
Message(role='user', content='Which folder?')
>>> Sampling(temperature=0.7, seed=1).top_p
0.95
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llmaas.old_paths import keep_old_modules
from llmaas.version import __version__

if TYPE_CHECKING:  # what type checkers and editors see; _HOMES says the same to the interpreter
    from llmaas.api.async_client import AsyncClient, AsyncClientContext, AsyncStream
    from llmaas.api.client import Client, ClientContext, Stream
    from llmaas.calls import (
        Done,
        FinishReason,
        Loading,
        Logprobs,
        Piece,
        Priority,
        Progress,
        Queued,
        Sampling,
        SwitchReport,
        Terms,
        TokenLogprob,
    )
    from llmaas.errors import (
        AdapterMismatch,
        AdapterUnreadable,
        AnswerIncomplete,
        AppExists,
        BadRequest,
        BadToken,
        Busy,
        CallerError,
        Cancelled,
        ChunkDamaged,
        ConfigError,
        Conflict,
        ContextDamaged,
        ContextExists,
        ContextTooLong,
        DiskFull,
        EngineFailed,
        Expired,
        Fault,
        Forbidden,
        FrameTooLarge,
        Internal,
        KeyReused,
        LlmaasError,
        MachineError,
        MalformedFrame,
        ModelChanged,
        ModelEnded,
        ModelMismatch,
        ModelUnreadable,
        Moving,
        NodeUnreachable,
        NoMemory,
        NoNumbers,
        NotServing,
        NotTrusted,
        PolicyBug,
        QuotaExceeded,
        ShuttingDown,
        SocketInUse,
        StoreFailed,
        UnknownAdapter,
        UnknownApp,
        UnknownContext,
        UnknownModel,
        UnknownNode,
        UnknownRequest,
        VersionMismatch,
        WritesNoText,
    )
    from llmaas.records import (
        AdapterInfo,
        AppInfo,
        AppQuota,
        AppUse,
        ContextDetail,
        ContextInfo,
        ContextSpan,
        ExportedContext,
        Message,
        NewToken,
        Resolved,
        Tier,
    )

keep_old_modules()

_HOMES = {
    "llmaas.api.async_client": "AsyncClient AsyncClientContext AsyncStream",
    "llmaas.api.client": "Client ClientContext Stream",
    "llmaas.calls": (
        "Done FinishReason Loading Logprobs Piece Priority Progress Queued Sampling SwitchReport Terms TokenLogprob"
    ),
    "llmaas.errors": (
        "AdapterMismatch AdapterUnreadable AnswerIncomplete AppExists BadRequest BadToken Busy CallerError "
        "Cancelled  ChunkDamaged ConfigError Conflict ContextDamaged ContextExists ContextTooLong DiskFull "
        "EngineFailed  Expired Fault Forbidden FrameTooLarge Internal KeyReused LlmaasError MachineError "
        "MalformedFrame  ModelChanged ModelEnded ModelMismatch ModelUnreadable Moving NoMemory NoNumbers NotServing "
        "NodeUnreachable NotTrusted PolicyBug  QuotaExceeded ShuttingDown SocketInUse StoreFailed UnknownAdapter "
        "UnknownApp UnknownContext UnknownModel UnknownNode UnknownRequest VersionMismatch WritesNoText"
    ),
    "llmaas.records": (
        "AdapterInfo AppInfo AppQuota AppUse ContextDetail ContextInfo ContextSpan ExportedContext Message NewToken "
        "Resolved Tier"
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "AdapterInfo",
    "AdapterMismatch",
    "AdapterUnreadable",
    "AnswerIncomplete",
    "AppExists",
    "AppInfo",
    "AppQuota",
    "AppUse",
    "AsyncClient",
    "AsyncClientContext",
    "AsyncStream",
    "BadRequest",
    "BadToken",
    "Busy",
    "CallerError",
    "Cancelled",
    "ChunkDamaged",
    "Client",
    "ClientContext",
    "ConfigError",
    "Conflict",
    "ContextDamaged",
    "ContextDetail",
    "ContextExists",
    "ContextInfo",
    "ContextSpan",
    "ContextTooLong",
    "DiskFull",
    "Done",
    "EngineFailed",
    "Expired",
    "ExportedContext",
    "Fault",
    "FinishReason",
    "Forbidden",
    "FrameTooLarge",
    "Internal",
    "KeyReused",
    "LlmaasError",
    "Loading",
    "Logprobs",
    "MachineError",
    "MalformedFrame",
    "Message",
    "ModelChanged",
    "ModelEnded",
    "ModelMismatch",
    "ModelUnreadable",
    "Moving",
    "NewToken",
    "NoMemory",
    "NoNumbers",
    "NodeUnreachable",
    "NotServing",
    "NotTrusted",
    "Piece",
    "PolicyBug",
    "Priority",
    "Progress",
    "Queued",
    "QuotaExceeded",
    "Resolved",
    "Sampling",
    "ShuttingDown",
    "SocketInUse",
    "StoreFailed",
    "Stream",
    "SwitchReport",
    "Terms",
    "Tier",
    "TokenLogprob",
    "UnknownAdapter",
    "UnknownApp",
    "UnknownContext",
    "UnknownModel",
    "UnknownNode",
    "UnknownRequest",
    "VersionMismatch",
    "WritesNoText",
    "__version__",
]

if not TYPE_CHECKING:  # else type checkers would let every name pass

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value  # the next access does not come here
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
