"""How large the demo is: what each app has seen, how many turns follow, and how little memory there is.

Law: sizes are counted with the model's own tokenizer and the codec's own arithmetic, before the daemon starts.
Only ``seconds``, ``seed`` and the rough class of the machine go in, so that a run can be repeated.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmaas.cli.demo.data import Conversation
from llmaas.clock import RealClock
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.model import LlamaModel
from llmaas.kvchunks.codec.codec import Codec, sinks_at
from llmaas.kvchunks.codec.kernels import NUMPY
from llmaas.records import CHUNK_TOKENS, LOSSLESS, Message, Precision

CODED = Precision(4, 4)
ANSWER_TOKENS = 28
FULL_SECONDS = 120
QUICK_SECONDS = 25
_HISTORY_TOKENS = 1000
"""Mean length of the contexts at the beginning of a demo of FULL_SECONDS at _USUAL_SPEED."""
_TURNS = 11
"""Turns of each app in it. Both shrink and grow with the time."""
_USUAL_SPEED = 350.0
"""Tokens per second of prefill on two cores of a laptop."""
_FASTEST = 4.0
"""Times the usual speed beyond which contexts do not grow: the conversations are only so long."""
_SPREAD = 0.35
"""Contexts are up to this much shorter or longer than the mean."""
_LEAST_HISTORY = 260
AFTERWARDS = 3
"""Questions of each app kept for what follows the turns: all at once, the comparison, the restart."""
_LEAST_TURNS = 2
_CELLS_STEP = 256
_PROBE_TOKENS = 128
_PROBES = 4
_RETURNS = (5, 5, 4, 2, 1, 1, 1, 1)
"""Weights of returning to the app used last, the one before, and so on: phones are used like this (most returns
are to one of the last three apps)."""


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


def measured_pace(model: Path) -> float:
    """How fast this machine can read text, in times the usual speed: a power of two, so that runs stay comparable."""
    engine = LlamaEngine(model, n_cells=512, n_seqs=2, n_threads=len(os.sched_getaffinity(0)))
    clock, tokens, times = RealClock(), list(range(1000, 1000 + _PROBE_TOKENS)), []
    try:
        for _ in range(_PROBES):
            began = clock.now()
            engine.step([BatchItem(0, 0, tokens)])
            times.append(clock.now() - began)
            engine.drop(0, 0)
    finally:
        engine.close()
    # The best: the first pages the weights in, and others may have been disturbed.
    speed = _PROBE_TOKENS / min(times)
    return float(min(_FASTEST, 2.0 ** round(math.log2(speed / _USUAL_SPEED))))


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


def schedule(plan: Plan) -> Iterator[str]:
    """Whose turn it is: every app once, then mostly returns to apps that were used not long ago."""
    # Not for secrets: the same seed must give the same demo.
    dice = random.Random(plan.seed)
    left = {app.app: app.n_questions - AFTERWARDS for app in plan.apps}
    recent = [app.app for app in plan.apps]
    dice.shuffle(recent)
    for turn in range(plan.turns_each * len(recent)):
        able = [app for app in recent if left[app] > 0]
        if not able:
            return
        weights = _RETURNS[: len(able)]
        app = recent[-1] if turn < len(recent) else dice.choices(able, weights)[0]
        left[app] -= 1
        recent.remove(app)
        recent.insert(0, app)
        yield app
