"""What is wrong with a store, in words: what was found, what was done about it, and what that means for the user.

Law: every number that was found is in the words; opens no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from llmaas.frozen import frozen
from llmaas.kvchunks.store.reports import Damage, Problem, Salvage
from llmaas.kvchunks.store.store import CheckReport


@frozen
class Words:
    """How a kind of damage is reported: ``found`` is followed by a number, ``done`` says what a repair did."""

    found: str
    done: str


_DROPPED = "dropped"
EXPLAIN = {
    Damage.INDEX: Words("problems that SQLite sees in the index", "not mended"),
    Damage.ROW: Words("rows that are not what was written", "not mended: run it once more"),
    Damage.META: Words("chunks with impossible bits or measurements", "forgotten; they are measured again"),
    Damage.COUNT: Words("contexts that hold another number of tokens than they say", "counted anew, no token touched"),
    Damage.TURN: Words("contexts with damaged idempotency keys", "forgotten; conversations are not affected"),
    Damage.TTL: Words("contexts with a damaged time to live", "forgotten; the contexts stay"),
    Damage.KEY: Words("damaged copies of keys of conversations", "copied anew; conversations are not affected"),
    Damage.MISSING: Words("chunks whose payload file is gone", _DROPPED),
    Damage.SHORT: Words("chunks behind the end of their payload file", _DROPPED),
    Damage.OVERLAP: Words("chunks that share bytes with another", _DROPPED),
    Damage.UNREADABLE: Words("chunks where the disk cannot be read", _DROPPED),
    Damage.FLIPPED: Words("chunks whose bytes are not those written", _DROPPED),
    Damage.STRAY: Words("payload files that belong to nothing", "deleted"),
    Damage.EMPTY: Words("payload files without chunks", "forgotten"),
    Damage.FOREIGN: Words("strange files in the payload folder", "left alone; move them elsewhere"),
    Damage.MODE: Words("files or folders that others may open", "closed to others"),
}


def explain(report: CheckReport) -> Iterator[tuple[bool, str]]:
    """A line for each kind of damage, with the first example and what was done about it, if the store was repaired.

    With each line: whether the damage is the store's own. What is not can stay.
    """

    def kind_of(problem: Problem) -> str:
        return problem.kind.value

    for _, group in groupby(sorted(report.found, key=kind_of), key=kind_of):
        problems = list(group)
        words = EXPLAIN[problems[0].kind]
        what = f"{words.found}: {len(problems)} ({problems[0].text}{', ...' if problems[1:] else ''})"
        ours = problems[0].kind is not Damage.FOREIGN
        yield ours, f"{what}; {words.done}" if report.repaired else what


def cost(problems: Sequence[Problem], *, done: bool) -> str:
    """What the loss of chunks means; "" if none is lost."""
    lost = [problem.n_tokens for problem in problems if problem.n_tokens]
    if not lost:
        return ""
    was, will = ("dropped", "was") if done else ("to be dropped", "is")
    chunks = "1 chunk" if len(lost) == 1 else f"{len(lost)} chunks"
    tokens = f"their contexts will recompute about {sum(lost)} tokens on next use"
    return f"{chunks} {was}; {tokens}; no conversation {will} lost"


def explain_salvage(found: Salvage) -> Iterator[str]:
    """What became of a damaged index, a line for each conversation that is not whole."""
    whole = found.contexts - len(found.shortened)
    taken = f"{found.contexts} conversations taken from it into a new one, {whole} of them whole"
    yield f"the index was damaged: moved to {found.moved}, and {taken}"
    for mended in found.mended:
        yield f"context {mended.name!r} of {mended.app}: {mended.what}"
    for short in found.shortened:
        yield (
            f"context {short.name!r} of {short.app}: {short.kept} of {short.n_tokens} tokens could be read and are "
            f"kept, the rest may still be in {found.moved.name}"
        )
    if found.lost:
        yield f"{found.lost} conversations could not be read: what is left of them is in {found.moved.name} only"
    if found.adapters_lost:
        yield f"adapters that could not be read, and must be registered again: {found.adapters_lost}"
    if not found.contexts:
        yield "nothing could be read: contexts start anew"
