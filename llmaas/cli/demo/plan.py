"""How large the demo is: what each app has seen, how many turns follow, and how little memory there is.

Law: sizes are counted with the model's own tokenizer and the codec's own arithmetic, before the daemon starts.
Only ``seconds``, ``seed`` and the rough class of the machine go in, so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.cli.demo.data import Conversation
from llmaas.cli.demo.times import FULL_SECONDS
from llmaas.engine.llama.model import LlamaModel
from llmaas.frozen import frozen
from llmaas.kvchunks.codec.codec import Codec, sinks_at
from llmaas.kvchunks.codec.kernels import NUMPY
from llmaas.records import CHUNK_TOKENS, LOSSLESS, Message, Precision

CODED = Precision(4, 4)
ANSWER_TOKENS = 28
_HISTORY_TOKENS = 1000
"""Mean length of the contexts at the beginning of a demo of FULL_SECONDS at pace 1."""
_TURNS = 11
"""Turns of each app in it. Both shrink and grow with the time."""
_SPREAD = 0.35
"""Contexts are up to this much shorter or longer than the mean."""
_LEAST_HISTORY = 260
AFTERWARDS = 3
"""Questions of each app that are kept for what follows the turns: all at once, the comparison, the restart."""
_LEAST_TURNS = 2
_CELLS_STEP = 256


@frozen
class AppPlan:
    """``n_history`` turns are the app's past; at most ``n_questions`` of the user's next messages are put."""

    conversation: Conversation
    n_history: int
    n_questions: int
    tokens_first: int
    tokens_final: int
    """Expected, after an average number of turns."""
    tokens_most: int
    """After all questions."""

    @property
    def app(self) -> str:
        return self.conversation.app


@frozen
class Plan:
    """The whole demo. Bytes and tokens as named; ``coded_bytes`` is what the final contexts take in the POOL."""

    apps: tuple[AppPlan, ...]
    seconds: float
    seed: int
    pace: float
    """Times the usual speed that the sizes are made for."""
    turns_each: int
    n_compared: int
    cells: int
    pool_bytes: int
    token_bytes: int
    coded_bytes: int

    @property
    def tokens_final(self) -> int:
        return sum(app.tokens_final for app in self.apps)

    @property
    def f16_bytes(self) -> int:
        """What the final contexts would take in cells."""
        return self.tokens_final * self.token_bytes

    @property
    def cells_bytes(self) -> int:
        return self.cells * self.token_bytes


def make_plan(
    conversations: Sequence[Conversation], model: LlamaModel, seconds: float, seed: int, pace: float = 1.0
) -> Plan:
    """Sizes for a demo of about ``seconds`` on a machine of ``pace``."""
    scale = seconds / FULL_SECONDS * pace
    turns_each = max(_LEAST_TURNS, round(_TURNS * scale))
    mean = max(_LEAST_HISTORY, _HISTORY_TOKENS * scale)
    last = max(1, len(conversations) - 1)
    apps = tuple(
        _plan_app(conversation, model, mean * (1 - _SPREAD + 2 * _SPREAD * i / last), turns_each)
        for i, conversation in enumerate(conversations)
    )
    geometry = model.geometry()
    codec = Codec(geometry, kernels=NUMPY)
    coded = sum(_coded_bytes(app.tokens_final, codec) for app in apps)
    return Plan(
        apps=apps,
        seconds=seconds,
        seed=seed,
        pace=pace,
        turns_each=turns_each,
        n_compared=len(apps) if seconds >= FULL_SECONDS / 2 else max(1, len(apps) // 2),
        cells=-(-max(app.tokens_most for app in apps) // _CELLS_STEP) * _CELLS_STEP,
        pool_bytes=coded // 3,
        token_bytes=geometry.token_bytes,
        coded_bytes=coded,
    )


def _plan_app(conversation: Conversation, model: LlamaModel, target: float, turns_each: int) -> AppPlan:
    def count(messages: Sequence[Message]) -> int:
        return len(model.tokenize(model.render(messages, answer=False), special=True, bos=True))

    glue = count(conversation.turns[:2]) - sum(
        len(model.tokenize(turn.content, special=False, bos=False)) for turn in conversation.turns[:2]
    )
    lengths = [len(model.tokenize(turn.content, special=False, bos=False)) + glue // 2 for turn in conversation.turns]
    n, tokens = 0, 0
    while tokens < target and n < len(lengths) * 3 // 5 - 1:
        tokens += lengths[n] + lengths[n + 1]
        n += 2
    asked = [lengths[i] for i in range(n, len(lengths), 2)]
    n_questions = min(len(asked), turns_each * 3 // 2 + AFTERWARDS)
    answer = ANSWER_TOKENS + glue // 2
    first = count(conversation.history(n))
    return AppPlan(
        conversation,
        n,
        n_questions,
        first,
        first + sum(asked[:turns_each]) + turns_each * answer,
        first + sum(asked[:n_questions]) + n_questions * answer,
    )


def _coded_bytes(n_tokens: int, codec: Codec) -> int:
    """Bytes of the chunks of a context in the POOL, all metadata counted."""
    starts = range(0, n_tokens, CHUNK_TOKENS)
    sizes = [min(CHUNK_TOKENS, n_tokens - start) for start in starts]
    return sum(
        codec.encoded_size(n, CODED if n == CHUNK_TOKENS else LOSSLESS, sinks_at(s))
        for n, s in zip(sizes, starts, strict=True)
    )
