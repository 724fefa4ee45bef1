"""What a call asks for: the turn that it adds, its terms, and the limits of the answer.

Law: values only. Each checks itself when it is made, and raises ValueError if a field is wrong.
"""

from __future__ import annotations

import enum
import reprlib

from llmaas.calls.sampling import Sampling
from llmaas.frozen import frozen
from llmaas.records import Message

ON_FULL = ("error", "shift")
"""What happens when a context is full; see ``Generation``."""
MAX_LOGPROBS = 20
MAX_KEY = 128
"""Characters of an idempotency key."""


@frozen
class Turn:
    """What a call adds to a context before the model answers.

    Either chat ``messages``, which the model's chat template formats, or raw ``prompt`` text, or nothing: then the
    model continues the context as it is.

    ``special``: names of control tokens in a prompt (``<|im_end|>``) become these tokens. Whoever puts foreign text
    into a prompt sets it to False: with it, such text can end the user's turn and speak for the system. Messages never
    become control tokens.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    special: bool = True

    def __post_init__(self) -> None:
        if self.messages and self.prompt is not None:
            raise ValueError("give messages or a prompt, not both")


class Priority(enum.IntEnum):
    """Names of some of the priorities, which go from 0 (most urgent) to 9."""

    INTERACTIVE = 1
    NORMAL = 5
    BACKGROUND = 8


@frozen
class Terms:
    """On what terms a call is served.

    ``priority``: 0 (most urgent) to 9. ``deadline_s``: seconds from submission after which the call is cancelled.
    ``rate``: most tokens per second that it may generate. ``adapter``: name of the LoRA adapter that the context uses
    from now on, "" for the bare model; None keeps the context's adapter.
    """

    priority: int = Priority.NORMAL
    deadline_s: float | None = None
    rate: float | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.priority <= 9:
            raise ValueError(f"priority must be from 0 (most urgent) to 9, not {self.priority}")
        if self.deadline_s is not None and not 0.0 < self.deadline_s <= 1e9:
            raise ValueError(f"deadline_s must be a number of seconds above 0, not {self.deadline_s}")
        if self.rate is not None and not 0.0 < self.rate <= 1e9:
            raise ValueError(f"rate must be a number of tokens per second above 0, not {self.rate}")


DEFAULT_TERMS = Terms()


@frozen
class Generation:
    """Limits and sampling of one answer.

    ``stop``: strings that end the answer. ``logprobs``: number of alternatives to report for each token; None reports
    no log-probabilities. ``on_full``: "error" refuses a turn that does not fit, and ends an answer that fills the
    context; "shift" drops the oldest messages after the system message instead.
    """

    max_tokens: int = 256
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    on_full: str = "error"

    def __post_init__(self) -> None:
        if self.on_full not in ON_FULL:
            raise ValueError(f"on_full is one of {', '.join(ON_FULL)}, not {self.on_full}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if any(not s for s in self.stop):
            raise ValueError("a stop string may not be empty")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs must be in [0, {MAX_LOGPROBS}], not {self.logprobs}")


@frozen
class CallSpec:
    """What a call asks of a context: add ``turn``, then answer it. With ``generation`` None, only add it.

    ``idempotency_key``: names this very request, so that it is carried out once however often it is made.
    ``if_n_tokens``: only if the context has so many tokens. ``progress``: tell how far reading the prompt has come.
    ``n_answered``: the last tokens of the context are of this answer, drawn elsewhere with the same sampling.
    """

    turn: Turn
    generation: Generation | None = None
    terms: Terms = DEFAULT_TERMS
    idempotency_key: str | None = None
    if_n_tokens: int | None = None
    progress: bool = False
    n_answered: int = 0

    def __post_init__(self) -> None:
        key = self.idempotency_key
        if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
            raise ValueError(f"idempotency_key must be 1 to {MAX_KEY} printable characters, not {reprlib.repr(key)}")
        if key is not None and self.generation is not None and self.generation.logprobs is not None:
            raise ValueError("logprobs are not stored with a turn: give logprobs or an idempotency_key, not both")
        if self.if_n_tokens is not None and self.if_n_tokens < 0:
            raise ValueError(f"if_n_tokens must be 0 or more, not {self.if_n_tokens}")
        if self.n_answered < 0 or (self.n_answered and (self.turn != Turn() or self.generation is None)):
            raise ValueError("n_answered must be 0 or more, and 0 with a turn or without an answer")

    @property
    def max_new(self) -> int:
        """Most tokens of the answer; 0 if there is none."""
        return self.generation.max_tokens if self.generation else 0

    @property
    def is_constrained(self) -> bool:
        """Whether the answer keeps to a grammar or a JSON schema."""
        return self.generation is not None and self.generation.sampling.constrained

    @property
    def shifts(self) -> bool:
        """Whether a full context drops its oldest messages."""
        return self.generation is not None and self.generation.on_full == "shift"
