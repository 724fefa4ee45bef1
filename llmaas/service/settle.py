"""A context follows a template that writes past answers anew when the next turn comes.

Law: this changes memory only, like ``shift``: the store changes once, when the call is committed.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.calls import Turn
from llmaas.engine.base import Engine
from llmaas.frozen import frozen
from llmaas.kvchunks.store.store import Span
from llmaas.kvchunks.store.tokens import n_common
from llmaas.service.control_names import control_names
from llmaas.service.live_context import LiveContext
from llmaas.service.pending_turn import PendingTurn, Shift
from llmaas.service.settled_past import SettledPast, settled_past
from llmaas.service.turn_spans import renderer
from llmaas.service.turn_tokens import spans_of


@frozen
class Settled:
    """The context keeps its first ``n_messages`` messages and ``n_tokens`` tokens, and ``spans`` follow."""

    n_messages: int
    n_tokens: int
    spans: list[Span]


def may_settle(live: LiveContext, turn: Turn) -> bool:
    """Whether the context ends in an answer, so that ``settled`` may find something. Takes no time."""
    if not turn.messages or not live.marks or live.marks[-1].end != len(live.tokens):
        return False
    return live.marks[-1].message.role == "assistant"


def settled(engine: Engine, live: LiveContext, turn: Turn, *, answer: bool, limit: int) -> Settled | None:
    """How the context's past is written anew for ``turn``; None if it stays as it is. May be called on any thread.

    It stays where the template keeps it, and also where the answer holds control tokens: its text does not say what
    its tokens say, so it cannot be rendered.
    """
    if not may_settle(live, turn):
        return None
    names = control_names(engine.control_names)
    found = settled_past(
        renderer(engine), live.messages, turn.messages, past_open=live.open, answer=answer, names=names
    )
    if found is None or not _is_rendered(engine, live, found):
        return None
    n_tokens = live.marks[found.n_kept - 1].end if found.n_kept else 0
    after = live.tokens[n_tokens - 1] if n_tokens else None
    return Settled(found.n_kept, n_tokens, spans_of(engine, found.text, names, after=after, limit=limit))


def _is_rendered(engine: Engine, live: LiveContext, found: SettledPast) -> bool:
    """Whether what would be replaced is messages and the template's glue, no raw text; and answers that are text."""

    def is_glue(tokens: Sequence[int], after: int | None) -> bool:
        texts = (found.opening, found.closing) if tokens else ()
        read = [engine.tokenize(text, special=True, bos=False, after=after) for text in texts]
        return not tokens or list(tokens) in read

    marks, end = live.marks, live.marks[found.n_kept - 1].end if found.n_kept else 0
    for mark in marks[found.n_kept :]:
        if not is_glue(live.tokens[end : mark.start], live.tokens[end - 1] if end else None):
            return False
        generated = mark.open or (mark.message.role == "assistant" and mark.start > end)
        if generated and not all(map(engine.piece, live.tokens[mark.start : mark.end])):
            return False
        end = mark.end
    return True


def settle(pending: PendingTurn, stored: Sequence[Span], new: Settled) -> int:
    """Write the context's past anew in memory. ``stored``: the spans that the store has.

    Returns how many leading tokens stayed as they were.
    """
    live = pending.live
    old, marks = live.tokens, live.marks
    kept, n_tokens, n_messages = list[Span](), 0, 0
    for span in stored:
        if n_tokens == new.n_tokens and (span.tokens or n_messages == new.n_messages):
            break
        kept.append(span)
        n_tokens += len(span.tokens)
        n_messages += span.role is not None
    pending.shift = Shift(old, marks, [*kept, *new.spans])
    live.replace_spans(pending.shift.kept)
    pending.base = len(live.tokens)
    return n_common(old, live.tokens)
