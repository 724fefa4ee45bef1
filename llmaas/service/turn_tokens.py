"""The tokens of a turn's text: only what the template itself wrote may become control tokens.

Law: nothing is changed here; the engine's text methods may be called on any thread.

A text is cut where a control token of the template's own begins or ends, which is where llama.cpp's tokenizers cut it
anyway: so the tokens are those of the whole text. What stands between two of them is read without control tokens where
it holds a name of one, which then is from a message. If a part ends elsewhere, within a word perhaps, then the token
that its end falls into belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise, takewhile

from llmaas.engine.base import Engine
from llmaas.frozen import frozen
from llmaas.kvchunks.store.store import Span
from llmaas.service.chat import TurnText
from llmaas.service.control_names import ControlNames
from llmaas.service.refusals import refuse_if_too_long


@frozen
class _TextRun:
    """Text that is tokenized at once, from ``start`` to ``stop``."""

    start: int
    stop: int
    special: bool


def spans_of(engine: Engine, turn: TurnText, names: ControlNames, *, after: int | None, limit: int) -> list[Span]:
    """A span for each part of the turn. ``after``: the last token of the context; None: the text begins it. Raises
    BadRequest for text that cannot be read, ContextTooLong if there are more than ``limit`` tokens."""
    ends = [(stop, message) for stop, message in turn.stops]
    found: list[list[int]] = [[] for _ in ends]
    part = n_tokens = 0
    for run in _runs(engine, turn, names):
        text = turn.text[run.start : run.stop]
        tokens = engine.tokenize(text, special=run.special, bos=after is None, after=after, limit=limit)
        after = tokens[-1] if tokens else after
        n_tokens += len(tokens)
        refuse_if_too_long(n_tokens, limit)
        while part < len(ends) - 1 and ends[part][0] <= run.start:
            part += 1
        inside = list(takewhile(lambda stop: stop < run.stop, (stop for stop, _ in islice(ends, part, None))))  # noqa: B023
        at = 0
        for cut in _token_indexes(engine, turn, run, tokens, inside):
            found[part] += tokens[at:cut]
            at, part = cut, part + 1
        found[part] += tokens[at:]
    return [
        Span(tuple(tokens), message.role, message.content) if message else Span(tuple(tokens))
        for tokens, (_, message) in zip(found, ends, strict=True)
    ]


def _runs(engine: Engine, turn: TurnText, names: ControlNames) -> Iterator[_TextRun]:
    foreign = list(_foreign(engine, turn, names))
    foreign_starts = {start for start, _ in foreign}
    own_starts = {start for start, _ in turn.own}
    cuts = {stop for stop, _ in turn.stops if stop in own_starts}.union(*foreign) - {0, len(turn.text)}
    places = [0, *sorted(cuts), len(turn.text)]
    for start, stop in pairwise(places):
        if start < stop:
            yield _TextRun(start, stop, start not in foreign_starts)


def _foreign(engine: Engine, turn: TurnText, names: ControlNames) -> Iterator[tuple[int, int]]:
    """What is to be read without control tokens: of all that stands between two of the template's own, what holds a
    name, or makes one together with its neighbour."""
    n = len(turn.text)
    borders = [(0, 0), *turn.own, (n, n)]
    crossed = [turn.joins and names.crosses(turn.text, *own) for own in borders]
    for i, ((before, start), (stop, _)) in enumerate(pairwise(borders)):
        if start < stop and (crossed[i] or crossed[i + 1] or names.are_in(turn.text[start:stop])):
            yield start + _n_eaten(engine, turn.text[before:start], turn.text[start:stop]), stop


def _n_eaten(engine: Engine, name: str, text: str) -> int:
    """How much white space at the start of ``text`` belongs to the control token before it, as some models' take it."""
    blank = len(text) - len(text.lstrip())
    if not name or not blank:
        return 0
    alone, both = (engine.tokenize(each, special=True, bos=False) for each in (name, name + text[:blank]))
    return blank if alone == both else 0


def _token_indexes(
    engine: Engine, turn: TurnText, run: _TextRun, tokens: Sequence[int], places: Sequence[int]
) -> Iterator[int]:
    """For each of the ascending ``places`` in the run, how many of its tokens come before it."""
    if not places:
        return
    data = turn.text[run.start : run.stop].encode("utf-8", "replace")
    pieces = [engine.piece(token) for token in tokens]
    own = [b for a, b in turn.own if run.special and run.start <= a and b <= run.stop]
    extra = pieces.count(b"") - len(own)  # start tokens that are not in the text
    ends = iter([0] * extra + [_offset(turn, run, place) for place in own])
    first = next((piece for piece in pieces if piece), b"")
    at = -1 if first[:1] == b" " and data[:1] != b" " else 0  # SentencePiece puts a space in front
    n = 0
    for place in places:
        offset = _offset(turn, run, place)
        while at < offset and n < len(tokens):
            at = at + len(pieces[n]) if pieces[n] else next(ends, at)
            n += 1
        yield n


def _offset(turn: TurnText, run: _TextRun, place: int) -> int:
    """In bytes from the run's start."""
    return len(turn.text[run.start : place].encode("utf-8", "replace"))
