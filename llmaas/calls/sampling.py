"""How an answer is drawn from the model's probabilities.

Law: values only. Each checks itself when it is made, and raises ValueError if a field is wrong.
"""

from __future__ import annotations

from llmaas.frozen import frozen

MAX_PENALTY_TOKENS = 4096
MIN_PENALTY = 0.01
"""Of ``repeat_penalty``: with less, logits that are divided by it become infinite."""
_GREEDY = 1e-6
"""A temperature below it is 0. In 32 bits, logits that are divided by much less are infinite, several of them, and the
likeliest of these is not known."""
MAX_GRAMMAR = 1 << 16
"""Most bytes of a grammar or schema. Parsing one takes more than linear time."""
MAX_BIASES = 300
MAX_MARK = 64
"""Characters of a mark around JSON."""
MAX_BIAS = 100.0
"""Beyond any logit: a token with this bias is always drawn, one with its negative never."""


@frozen
class Sampling:
    """How the next token is drawn. ``temperature`` 0, the default, is greedy: always the likeliest token. Small models
    then repeat themselves soon; answers for people want a temperature. With ``seed`` None a seed is drawn.

    Penalties are those of llama.cpp. They apply to tokens among the last ``penalty_last_n`` of context and answer: a
    positive logit is divided by ``repeat_penalty``, a negative one multiplied by it; then ``presence_penalty`` is
    subtracted, and ``frequency_penalty`` times the token's count.

    ``logit_bias`` adds to the logits of tokens before all else: pairs of a token and what is added, -100 to 100.

    The answer matches ``grammar``, which is GBNF with a rule ``root``, or ``json_schema``, the text of a JSON schema.
    With ``schema_marks``, two texts of which the second may be empty, it is free text, and JSON by the schema between
    these: what follows the first mark is an object by the schema, and then the second mark, as often as the model
    writes the first.
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
    schema_marks: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def penalises(self) -> bool:
        off = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty) == (1.0, 0.0, 0.0)
        return self.penalty_last_n > 0 and not off

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature < _GREEDY

    @property
    def constrained(self) -> bool:
        return self.grammar is not None or self.json_schema is not None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 10.0:
            raise ValueError(f"temperature must be in [0, 10], not {self.temperature}")
        if not 0 <= self.top_k < 1 << 31:
            raise ValueError(f"top_k must be 0 (off) or more, and below 2**31, not {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be in [0, 1], not {self.min_p}")
        if not MIN_PENALTY <= self.repeat_penalty <= 10.0:
            raise ValueError(f"repeat_penalty must be in [{MIN_PENALTY:g}, 10], not {self.repeat_penalty}")
        for name, value in (("presence", self.presence_penalty), ("frequency", self.frequency_penalty)):
            if not -10.0 <= value <= 10.0:
                raise ValueError(f"{name}_penalty must be in [-10, 10], not {value}")
        if not 0 <= self.penalty_last_n <= MAX_PENALTY_TOKENS:
            raise ValueError(f"penalty_last_n must be in [0, {MAX_PENALTY_TOKENS}], not {self.penalty_last_n}")
        self._check_biases()
        self._check_constraint()

    def _check_biases(self) -> None:
        if len(self.logit_bias) > MAX_BIASES:
            raise ValueError(f"logit_bias may have {MAX_BIASES} tokens, not {len(self.logit_bias)}")
        for token, bias in self.logit_bias:
            if not 0 <= token < 1 << 31 or not -MAX_BIAS <= bias <= MAX_BIAS:
                raise ValueError(f"logit_bias goes from -{MAX_BIAS:g} to {MAX_BIAS:g}, not ({token}, {bias})")

    def _check_constraint(self) -> None:
        if self.grammar is not None and self.json_schema is not None:
            raise ValueError("give a grammar or a json_schema, not both")
        self._check_marks()
        for name, text in (("grammar", self.grammar), ("json_schema", self.json_schema)):
            if text is not None and not 0 < len(text.encode()) <= MAX_GRAMMAR:
                raise ValueError(f"{name} must have 1 to {MAX_GRAMMAR} bytes, not {len(text.encode())}")

    def _check_marks(self) -> None:
        if not self.schema_marks:
            return
        if self.json_schema is None:
            raise ValueError("schema_marks need a json_schema to stand between them")
        if len(self.schema_marks) != 2 or not self.schema_marks[0].strip():
            raise ValueError(
                "schema_marks are two texts, the one before the JSON, which is no space, and the one after it"
            )
        if any(len(mark) > MAX_MARK for mark in self.schema_marks):
            raise ValueError(f"schema_marks have at most {MAX_MARK} characters each")
