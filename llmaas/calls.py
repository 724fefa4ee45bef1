"""The values of a call: what it adds, its terms and sampling, what streams back, and how it ended.

Law: values only, as in ``records``. Each checks itself when it is made, and raises ValueError if a field is wrong.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from llmaas.records import ContextId, Message

MAX_PENALTY_TOKENS = 4096
MAX_GRAMMAR = 1 << 16
"""Most bytes of a grammar or schema. Parsing one takes more than linear time."""
ON_FULL = ("error", "shift")
"""What happens when a context is full; see ``Generation``."""
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. ``temperature`` 0 is greedy; with ``seed`` None a seed is drawn.

    Penalties are those of llama.cpp. They apply to tokens among the last ``penalty_last_n`` of context and answer: a
    positive logit is divided by ``repeat_penalty``, a negative one multiplied by it; then ``presence_penalty`` is
    subtracted, and ``frequency_penalty`` times the token's count.

    The answer matches ``grammar``, which is GBNF with a rule ``root``, or ``json_schema``, the text of a JSON schema.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    grammar: str | None = None
    json_schema: str | None = None

    @property
    def penalises(self) -> bool:
        off = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty) == (1.0, 0.0, 0.0)
        return self.penalty_last_n > 0 and not off

    @property
    def constrained(self) -> bool:
        return self.grammar is not None or self.json_schema is not None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 10.0:
            raise ValueError(f"temperature must be in [0, 10], not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be in [0, 1], not {self.min_p}")
        if not 0.0 < self.repeat_penalty <= 10.0:
            raise ValueError(f"repeat_penalty must be in (0, 10], not {self.repeat_penalty}")
        for name, value in (("presence", self.presence_penalty), ("frequency", self.frequency_penalty)):
            if not -10.0 <= value <= 10.0:
                raise ValueError(f"{name}_penalty must be in [-10, 10], not {value}")
        if not 0 <= self.penalty_last_n <= MAX_PENALTY_TOKENS:
            raise ValueError(f"penalty_last_n must be in [0, {MAX_PENALTY_TOKENS}], not {self.penalty_last_n}")
        self._check_constraint()

    def _check_constraint(self) -> None:
        if self.grammar is not None and self.json_schema is not None:
            raise ValueError("give a grammar or a json_schema, not both")
        for name, text in (("grammar", self.grammar), ("json_schema", self.json_schema)):
            if text is not None and not 0 < len(text.encode()) <= MAX_GRAMMAR:
                raise ValueError(f"{name} must have 1 to {MAX_GRAMMAR} bytes, not {len(text.encode())}")


@dataclass(frozen=True, slots=True)
class Turn:
    """What a call adds to a context before the model answers.

    Either chat ``messages``, which the model's chat template formats, or raw ``prompt`` text, or nothing: then the
    model continues the context as it is.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.messages and self.prompt is not None:
            raise ValueError("give messages or a prompt, not both")


class Priority(enum.IntEnum):
    """Names of some of the priorities, which go from 0 (most urgent) to 9."""

    INTERACTIVE = 1
    NORMAL = 5
    BACKGROUND = 8


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class CallSpec:
    """What a call asks of a context: add ``turn``, then answer it. With ``generation`` None, only add it."""

    turn: Turn
    generation: Generation | None = None
    terms: Terms = DEFAULT_TERMS

    @property
    def max_new(self) -> int:
        """Most tokens of the answer; 0 if there is none."""
        return self.generation.max_tokens if self.generation else 0

    @property
    def shifts(self) -> bool:
        """Whether a full context drops its oldest messages."""
        return self.generation is not None and self.generation.on_full == "shift"


class FinishReason(enum.Enum):
    STOP = "stop"
    """The model ended its turn, or a stop string appeared."""
    LENGTH = "length"
    """max_tokens were generated."""
    CONTEXT_FULL = "context_full"
    """The context reached the greatest length that the service can hold."""
    APPENDED = "appended"
    """The call asked for no answer."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability. ``text``: its bytes as UTF-8; U+FFFD if they are not."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Logprobs(TokenLogprob):
    """A generated token in the model's own distribution, before penalties, grammar and sampling.

    ``top``: the likeliest tokens of that distribution, the best first, whether the token is among them or not.
    """

    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a streaming answer.

    ``text`` has complete characters only, so it may be empty and may lag behind ``tokens``. ``logprobs`` is parallel to
    ``tokens``; None if the call did not ask for them.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[Logprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
