"""The tree of errors: each says what went wrong, whose fault it is, whether to retry, and what to do next.

Law: every failure that a caller can see is one of these. ``code`` is stable and part of the wire protocol, ``message``
says what happened, ``hint`` says what to do next.
"""

from __future__ import annotations

import enum
from typing import ClassVar, NoReturn


class Fault(enum.Enum):
    CALLER = "caller"
    """The request cannot succeed as it is."""
    SERVICE = "service"
    """A fault of llmaas."""
    MACHINE = "machine"
    """Disk, memory, files or the model: an operator can repair it."""


class LlmaasError(Exception):
    """Base of all errors that leave the service.

    ``retryable``: whether the same request may succeed later without any change. Of a call that failed and left
    something in its context, ``n_generated`` tokens of the answer were kept, and the context has ``n_tokens`` now. Some
    errors that keep nothing say ``n_tokens`` too; else it is None.
    """

    code: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = Fault.SERVICE
    retryable: ClassVar[bool] = False
    hint: str = "This is a fault of llmaas; the daemon's log has the details."

    def __init__(
        self, message: str, *, hint: str | None = None, n_generated: int = 0, n_tokens: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.n_generated, self.n_tokens = n_generated, n_tokens
        if hint is not None:
            self.hint = hint


class Internal(LlmaasError):
    """An unexpected fault. The traceback is in the daemon's log."""


def replaced(error: LlmaasError, by_cause: LlmaasError) -> LlmaasError:
    """A new error like ``error``, of a call that ended in ``by_cause``: it says what that call has kept."""
    return type(error)(error.message, hint=error.hint, n_generated=by_cause.n_generated, n_tokens=by_cause.n_tokens)


# -- faults of the caller ---------------------------------------------------------------------


class CallerError(LlmaasError):
    code = "bad_request"
    fault = Fault.CALLER
    hint = "Correct the request and send it again."


class BadRequest(CallerError):
    """A field is missing, unknown, or out of range."""


class MalformedFrame(CallerError):
    code = "malformed_frame"
    hint = "Frames are a big-endian u32 length and a msgpack map; see docs/protocol.md."


class FrameTooLarge(CallerError):
    code = "frame_too_large"
    hint = "Send the text in several append calls."


class VersionMismatch(CallerError):
    code = "version_mismatch"
    hint = "Client and daemon must speak the same protocol version; upgrade the older one."


class UnknownContext(CallerError):
    """The app has no such context. Another app's context gives the same error, so that it cannot be found out."""

    code = "unknown_context"
    hint = "An app sees only its own contexts: list them, or create one."


class ContextExists(CallerError):
    code = "context_exists"
    hint = "Use the context that has this name, or choose another name."


class ContextTooLong(CallerError):
    code = "context_too_long"
    hint = "Shorten the text, truncate the context, or start the daemon with more cells."


class Conflict(CallerError):
    """The context is not as the request expects it: ``n_tokens`` is its length."""

    code = "conflict"
    hint = "Somebody else has changed the context: look at it ('show'), then ask as it is now."


class KeyReused(CallerError):
    """The idempotency key belongs to another request: its text, answer or adapter differ."""

    code = "key_reused"
    hint = "Use a new key for each request; the same key only to ask the very same again."


class QuotaExceeded(CallerError):
    """The app keeps as much as one app may."""

    code = "quota"
    hint = "Delete contexts that are not needed ('llmaas ctx rm')."


class UnknownRequest(CallerError):
    code = "unknown_request"
    hint = "The request has already ended, or never began."


class UnknownAdapter(CallerError):
    code = "unknown_adapter"
    hint = "Name one that 'llmaas adapter ls' lists, or \"\" for the bare model; 'llmaas adapter add' registers one."


class UnknownModel(CallerError):
    code = "unknown_model"
    hint = "Name one that 'llmaas model ls' lists; 'llmaas model add' registers one."


class UnknownNode(CallerError):
    code = "unknown_node"
    hint = "'llmaas node ls' lists the nodes that this one is paired with; 'llmaas node pair' adds one."


class WritesNoText(CallerError):
    """The model that is served makes embeddings only: it has no contexts and gives no answers."""

    code = "writes_no_text"
    hint = (
        "Ask it for embeddings ('embed', /v1/embeddings, /api/embed), or serve a model that writes text: "
        "'llmaas serve --model FILE', or one of several by its name."
    )


class AnswerIncomplete(CallerError):
    """An answer that was to be JSON ended before the JSON did. A client raises it; the daemon does not."""

    code = "answer_incomplete"
    hint = "Give more max_tokens, or a schema that bounds its lists and strings."


class Forbidden(CallerError):
    code = "forbidden"
    hint = (
        "This is for the user who runs the daemon, on its admin socket: llmaas-admin.sock beside llmaas.sock. "
        "The command 'llmaas' uses it by itself, Client(..., admin=True) does too."
    )


class BadToken(CallerError):
    """The app has a token, and the connection has not given it; or the token is no app's."""

    code = "bad_token"
    hint = (
        "Give the app's token: the variable LLMAAS_TOKEN, Client(..., token=...), or the header 'Authorization: "
        "Bearer TOKEN' over HTTP. 'llmaas app rotate NAME' makes a new one for the operator."
    )


class AppExists(CallerError):
    code = "app_exists"
    hint = "'llmaas app rotate NAME' makes a new token for it, 'llmaas app rm NAME' forgets it."


class UnknownApp(CallerError):
    code = "unknown_app"
    hint = "'llmaas app ls' lists those that have a token, 'llmaas app add NAME' adds one."


class ConfigError(CallerError):
    code = "bad_config"
    hint = "Correct the setting; 'llmaas serve --help' lists them all."


class Cancelled(LlmaasError):
    """The caller cancelled the call, or disconnected. ``n_generated`` tokens of the answer were kept."""

    code = "cancelled"
    fault = Fault.CALLER
    hint = "Tokens that were streamed are part of the context; call again to go on."


class Expired(LlmaasError):
    """The call's deadline passed before it was complete. ``n_generated`` tokens of the answer were kept."""

    code = "expired"
    fault = Fault.CALLER
    hint = "Give more time, or a more urgent priority; tokens that were streamed are part of the context."


# -- faults of the service --------------------------------------------------------------------


class Busy(LlmaasError):
    code = "busy"
    retryable = True
    hint = "Too many requests are waiting; try again in a moment."


class ShuttingDown(LlmaasError):
    code = "shutting_down"
    retryable = True
    hint = "The daemon is stopping; connect again when it is back."


class PolicyBug(LlmaasError):
    """A policy proposed a move that the ledger refuses, or a chunk made an illegal transition."""

    code = "policy_bug"


class EngineFailed(LlmaasError):
    code = "engine_failed"
    hint = "The model could not run this step; the daemon's log has the details."


class NoNumbers(EngineFailed):
    """The model computed NaN or infinity. What it computed for the context is dropped, and computed anew by the next
    call. ``items``: which items of the step were the cause."""

    hint = (
        "Try again: all of it is computed anew. If it stays so, the model's file is damaged, or the text needs a "
        "larger range of numbers than f16 has."
    )

    def __init__(self, message: str, *, items: tuple[int, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.items = items


class ModelEnded(EngineFailed):
    """The model's process has ended, and with it all calls of the connection. It is started again."""

    retryable = True


# -- faults of the machine --------------------------------------------------------------------


class MachineError(LlmaasError):
    code = "machine"
    fault = Fault.MACHINE
    hint = "Run 'llmaas doctor' to see what is wrong."


class DiskFull(MachineError):
    code = "disk_full"
    retryable = True
    hint = "Free space, or delete contexts ('llmaas ctx rm'); nothing that was stored is lost."


class NoMemory(MachineError):
    code = "no_memory"
    retryable = True
    hint = "Try again when other requests have ended; give the machine or container more memory, or the daemon less."


class StoreFailed(MachineError):
    code = "store_failed"
    hint = "Run 'llmaas doctor' to check the store."


class ContextDamaged(StoreFailed):
    """The context was altered on disk, and cannot be put right while the service runs. Others are not affected."""

    code = "context_damaged"
    hint = "Stop the daemon and run 'llmaas doctor --repair': it keeps what can be read. Or delete the context."


class ModelUnreadable(MachineError):
    code = "model_unreadable"
    hint = "Give the path of a readable GGUF model file with --model."


class ModelChanged(MachineError):
    """The model's file was cut or written to while it was served, so the weights are not those of the start."""

    code = "model_changed"
    hint = (
        "Put the file in order and restart the daemon; conversations are whole. To update a model, write the new file "
        "beside it and rename it over the old one (mv): a daemon that runs goes on with the old one."
    )


class ModelMismatch(MachineError):
    """The context's token ids belong to another tokenizer than the running model's."""

    code = "model_mismatch"
    hint = "Take the conversation over with 'llmaas ctx migrate', or serve the model that made it."


class AdapterUnreadable(MachineError):
    """The adapter's file is missing, damaged, or not an adapter."""

    code = "adapter_unreadable"
    hint = "Put the adapter's file back, or register another one under its name with 'llmaas adapter add'."


class AdapterMismatch(MachineError):
    """The adapter was made for another model than the one that is served."""

    code = "adapter_mismatch"
    hint = "Use an adapter that was trained for the model that is served, in a GGUF file (convert_lora_to_gguf.py)."


class SocketInUse(MachineError):
    code = "socket_in_use"
    hint = "Another daemon serves this socket: stop it, or give another path with --socket."


class NotTrusted(MachineError):
    """A folder, a file or a peer on the way to the daemon is in another user's hands."""

    code = "not_trusted"
    hint = "Use a folder that only you can write to; 'llmaas doctor' shows which socket is in use."


class NotServing(MachineError):
    code = "not_serving"
    retryable = True
    hint = "Start the daemon with 'llmaas serve', or give its socket with --socket."


class Moving(MachineError):
    """Another node may have the context by now, and cannot be asked."""

    code = "moving"
    retryable = True
    hint = (
        "It is asked again and again. If it is gone for good, forget it ('llmaas node rm'): then the context stays "
        "here."
    )


class NodeUnreachable(MachineError):
    """The other node does not answer, or the connection to it was lost."""

    code = "node_unreachable"
    retryable = True
    hint = (
        "See that its daemon runs with the setting 'nodes', and that its address is right ('llmaas node ls --check')."
    )


class ChunkDamaged(LlmaasError):
    """A coded chunk fails its checks. Inside the service this is a miss, not an error: the chunk is recomputed."""

    code = "chunk_damaged"
    fault = Fault.MACHINE
    hint = "The chunk is recomputed from its tokens."


def by_code() -> dict[str, type[LlmaasError]]:
    """Every error class by its code. Of classes with the same code, the most general one is listed.

    >>> by_code()["busy"].__name__, by_code()["bad_request"].__name__
    ('Busy', 'CallerError')
    """
    found: dict[str, type[LlmaasError]] = {}
    todo: list[type[LlmaasError]] = [LlmaasError]
    while todo:
        cls = todo.pop(0)
        found.setdefault(cls.code, cls)
        todo.extend(cls.__subclasses__())
    return found


def assert_never(value: NoReturn) -> NoReturn:
    """The last case of a ``match`` over a closed union: if a case is missing, mypy reports a type error here.

    The same as ``typing.assert_never``, which Python 3.10 lacks.
    """
    raise AssertionError(f"no case for {value!r}")
