"""What is replayed: calls with text, in the order of a trace, and the pauses between them.

Law: made once, before anything is measured, so that every program is given the same texts in the same order.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pydoc_data.topics import topics

from llmaas.engine.base import Engine
from llmaas.traces.call import TraceCall

_CHARACTERS = 4
"""Of a token, about."""
LONGEST_PAUSE_S = 0.25
"""Between two calls: a program may write and tidy up then, as it would in the minutes of the trace."""
STREAM, STREAM_PROMPT, STREAM_ANSWER = "stream", 32, 128
"""Name of the app and the context whose answer is watched while others are called, and tokens of both sides."""
AGAIN_ANSWER = 8
"""Tokens of the answer of a context that is called once more."""
SPEED = 3000.0
"""Seconds of the trace in one of the replay."""


@dataclass(frozen=True, slots=True)
class WorkCall:
    """A call: its text, and the same as tokens for programs that take tokens.

    ``begins``: it is its context's first. ``switches``: the call before it was another context's.
    """

    number: int
    app: str
    context: str
    text: str
    tokens: tuple[int, ...]
    n_new: int
    pause_s: float
    begins: bool
    switches: bool


@dataclass(frozen=True, slots=True)
class Work:
    calls: tuple[WorkCall, ...]
    longest: int
    """Tokens of the longest context at its end."""
    total: int
    """Tokens of all contexts at the end."""
    stream: WorkCall
    """What an app of its own asks, whose answer is watched while the others are called."""

    @property
    def contexts(self) -> tuple[tuple[str, str], ...]:
        """App and name of each context, in the order of their first calls."""
        return tuple(dict.fromkeys((call.app, call.context) for call in self.calls))

    @property
    def last_calls(self) -> Sequence[WorkCall]:
        """The last call of each context that was called after it began; that of the context called last is the last."""
        last: dict[tuple[str, str], WorkCall] = {}
        for call in self.calls:
            if not call.begins:
                last.pop((call.app, call.context), None)
                last[call.app, call.context] = call
        return list(last.values())

    def called_again(self, beside: int, restarts: int) -> tuple[Sequence[WorkCall], Sequence[WorkCall]]:
        """After the trace: the calls that are made once more while another app's answer is streamed, and those that are
        made after the program was started again."""
        last = self.last_calls
        return last[:beside], last[max(0, len(last) - restarts) :]

    def longest_then(self, beside: int, restarts: int) -> int:
        """Tokens of the longest context after those calls, each with an answer of ``AGAIN_ANSWER``."""
        sizes: dict[tuple[str, str], int] = defaultdict(int)
        for call in self.calls:
            sizes[call.app, call.context] += len(call.tokens) + call.n_new
        for calls in self.called_again(beside, restarts):
            for call in calls:
                sizes[call.app, call.context] += len(call.tokens) + AGAIN_ANSWER
        return max(sizes.values(), default=0)


def work_of(trace: Sequence[TraceCall], engine: Engine, seed: int) -> Work:
    """The calls of a trace. A call without text gets text of ``prompt`` tokens."""
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    filler = Filler(engine, seed)
    calls: list[WorkCall] = []
    before: TraceCall | None = None
    for call in trace:
        key = call.app, call.context
        begins = key not in sizes
        text = filler.text(call) if call.text is None else call.text
        tokens = tuple(engine.tokenize(text, special=False, bos=begins))
        gap = 0.0 if before is None else call.t - before.t
        switches = before is not None and key != (before.app, before.context)
        calls.append(
            WorkCall(
                number=len(calls),
                app=call.app,
                context=call.context,
                text=text,
                tokens=tokens,
                n_new=call.generate,
                pause_s=min(gap / SPEED, LONGEST_PAUSE_S),
                begins=begins,
                switches=switches and not begins,
            )
        )
        sizes[key] += len(tokens) + call.generate
        before = call
    text = filler.text(TraceCall(0.0, STREAM, STREAM, STREAM_PROMPT, 1))
    tokens = tuple(engine.tokenize(text, special=False, bos=True))
    stream = WorkCall(-1, STREAM, STREAM, text, tokens, 1, 0.0, begins=True, switches=False)
    return Work(tuple(calls), max(sizes.values(), default=0), sum(sizes.values()), stream)


class Filler:
    """Text for calls that have none: pieces of the Python manual. Texts of a ``prefix`` begin with the same piece."""

    def __init__(self, engine: Engine, seed: int) -> None:
        text = "\n".join(topics[name] for name in sorted(topics))
        self._engine, self._rng = engine, random.Random(f"filler {seed}")
        self._tokens = engine.tokenize(text, special=False, bos=False)
        self._prefixes: dict[str, list[int]] = {}

    def text(self, call: TraceCall) -> str:
        tokens: list[int] = []
        if call.prefix:
            tokens += self._prefixes.setdefault(call.prefix, self._piece(call.prefix_tokens))[: call.prefix_tokens]
        tokens += self._piece(call.prompt - len(tokens))
        return b"".join(self._engine.piece(token) for token in tokens).decode("utf-8", "ignore") or "?"

    def _piece(self, n: int) -> list[int]:
        """``n`` tokens from anywhere in the manual, so that no two contexts begin alike."""
        begin = self._rng.randrange(len(self._tokens))
        found: list[int] = []
        while len(found) < n:
            found += self._tokens[begin : begin + n - len(found)]
            begin = 0
        return found


def with_shared_beginning(trace: Iterable[TraceCall], tokens: int, *, one_app: bool) -> Iterator[TraceCall]:
    """The trace, in which every context begins with the same text of about so many tokens."""
    text = "\n".join(topics[name] for name in sorted(topics))[: tokens * _CHARACTERS]
    known: set[tuple[str, str]] = set()
    for call in trace:
        changed = call
        if tokens and call.text is not None and (call.app, call.context) not in known:
            changed = replace(call, text=f"{text}\n{call.text}", prompt=call.prompt + tokens)
        known.add((call.app, call.context))
        yield (
            replace(changed, app="app", context=f"{call.app}.{call.context}".replace(" ", "-")) if one_app else changed
        )


def shortened(trace: Iterable[TraceCall], contexts: int, calls: int) -> Iterator[TraceCall]:
    """The trace without contexts after the first ``contexts``, and at most ``calls`` calls that generate."""
    known: set[tuple[str, str]] = set()
    for call in trace:
        key = call.app, call.context
        if key not in known and len(known) >= contexts:
            continue
        known.add(key)
        if call.generate:
            if not calls:
                return
            calls -= 1
        yield call
