"""What a call gets back: the pieces of an answer, how it ended, and what it took.

Law: values only.
"""

from __future__ import annotations

import enum

from llmaas.frozen import frozen
from llmaas.records import ContextId


class FinishReason(enum.Enum):
    STOP = "stop"
    """The model ended its turn, or a stop string appeared."""
    LENGTH = "length"
    """max_tokens were generated."""
    CONTEXT_FULL = "context_full"
    """The context reached the greatest length that the service can hold."""
    APPENDED = "appended"
    """The call asked for no answer."""


@frozen
class TokenLogprob:
    """A token and the natural logarithm of its probability. ``text``: its bytes as UTF-8; U+FFFD if they are not."""

    token: int
    text: str
    logprob: float


@frozen
class Logprobs(TokenLogprob):
    """A generated token in the model's own distribution, before penalties, grammar and sampling.

    ``top``: the likeliest tokens of that distribution, the best first, whether the token is among them or not.
    """

    top: tuple[TokenLogprob, ...] = ()


@frozen
class Progress:
    """How much of its context a call has in the engine before the answer begins, in tokens."""

    done: int
    total: int


@frozen
class Loading:
    """A model that is not in memory, and is waited for."""

    model: str
    expected_s: float | None
    """Seconds until it is there, as far as is known; None while it waits for room, or nothing is known."""


@frozen
class Queued:
    """A call that waits for its turn behind others."""

    ahead: int
    """How many that wait are more urgent, or as urgent and came before. Fair shares of the apps may have one of them
    wait longer."""
    expected_s: float | None
    """Seconds until it is its turn, by how often calls had theirs lately; None if that is not known, or is late."""


@frozen
class Piece:
    """A piece of a streaming answer.

    ``text`` has complete characters only, so it may be empty and may lag behind ``tokens``. ``logprobs`` is parallel to
    ``tokens``; None if the call did not ask for them. Pieces with ``progress`` come before the answer, and have nothing
    of it; so do those with ``queued``, and with ``loading``, which the client makes for calls that ask for progress.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[Logprobs, ...] | None = None
    progress: Progress | None = None
    loading: Loading | None = None
    queued: Queued | None = None

    @property
    def of_answer(self) -> bool:
        """Whether it is a part of the answer; other pieces come before it."""
        return self.progress is None and self.loading is None and self.queued is None


@frozen
class SwitchReport:
    """Where the tokens of a context were when a call needed them, and how long bringing them back took."""

    cells: int = 0
    pool: int = 0
    disk: int = 0
    recomputed: int = 0
    switch_ms: float = 0.0

    @property
    def tokens(self) -> int:
        return self.cells + self.pool + self.disk + self.recomputed


@frozen
class Done:
    """The last reply to append and generate."""

    context: ContextId
    reason: FinishReason
    n_tokens: int
    """Tokens in the context now."""
    n_prompt: int
    """Tokens that this call added before the answer."""
    n_generated: int
    switch: SwitchReport
    queue_ms: float
    ttft_ms: float
    """From submission to the first token (for append: to the end)."""
    decode_tps: float
    """Tokens per second after the first."""
    n_paused: int = 0
    """How often the call was paused because others needed its cells."""
    n_dropped: int = 0
    """Tokens of old messages that the context dropped to make room (``on_full``)."""
    n_kept: int = 0
    """Tokens of the answer that are in the context: fewer than ``n_generated`` after a stop string, which is not."""
    stop: str | None = None
    """The stop string that ended the answer; None if none did."""
