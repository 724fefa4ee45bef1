"""What a move of a context to another node takes, and whether anything is lost when nodes and links fail meanwhile.

Two daemons, each with half of the threads and a store of its own, are paired over a proxy on loopback that passes so
many bits a second. The pause is what a person waits who moves an idle conversation (3,000 tokens of SmolLM2;
``--quick``: 500) and asks at once at the other node: from the request to move to the first token of the answer there.
``chunks``: coded chunks go with it; ``tokens``: nothing but tokens, and all is computed there. ``link_s`` is what the
bytes that went take on such a link by themselves.

``answered``: the conversation moves while it is answered, and the pause is the longest time between two pieces of the
answer that whoever asked sees from the request to move on; ``piece_s`` is what is usual, ``move_s`` the time until the
answer goes on there. ``tokens``, ``chunks`` and ``both`` are the ways: nothing but tokens, all coded chunks, or chunks
from the end while the other node computes the beginning, where the link is slow. ``both`` is compared with the better
of the others, by ``move_s`` and by the pause, where that is longer than twice ``piece_s``. ``left``: tokens that were
not told yet when it had moved; the answer is so long that some are, at any speed. One answer at 100 Mbit/s, a shorter
one, is read to its end: it was ``told`` so many tokens. ``passed``: bytes on the link until the answer goes on there,
in both directions: what is sent twice shows there.

``same``: an answer with chunks of 16 bits moves, by each way, and must have the text that it has where nothing moves.

Then contexts of the fake engine are moved at random, a few at once, each after a turn that was acknowledged, while
other contexts of both nodes are in use. Half of the moves are hit, within the first 50 ms: one node is killed by
SIGKILL, or the link is cut. After each, exactly one node must have the context, with every message, and at the end both
stores must be sound.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.hit_moves import LATE_S, hit_moves
from bench.lib.node import NodeProcess, two_nodes
from llmaas.api.client import Client
from llmaas.api.transfer_messages import MOVE_WAYS
from llmaas.records import CHUNK_TOKENS

_LETTERS = "the tide comes in and goes out, and nobody is at the harbour but a boat that waits for morning "
_ANSWER = 4000
"""Tokens, so that the answer goes on for longer than its move takes, by any way, also beside other work: 3,000 tokens
take a node with one thread half a minute, their chunks 15 s at 10 Mbit/s, and the other one draws 50 a second. Few are
read behind the move."""
_PIECES, _AFTER = 4, 20
"""Pieces of the answer before the move begins, and tokens behind it that are read."""
_BAR_MBIT = 100


@dataclass(frozen=True)
class Size:
    """``n_tokens``: of the conversation. ``whole``: of an answer that is read to its end; ``same``: of an answer whose
    text is compared, and of its conversation. ``rates``: in Mbit/s, of moves at rest, and of answers."""

    n_tokens: int
    rates: tuple[int, ...]
    answered: tuple[int, ...]
    whole: int
    same: tuple[int, int]
    n_moves: int


_FULL = Size(3000, (10, 100, 1000), (10, 100, 1000), 500, (400, 300), 500)
_QUICK = Size(500, (100, 1000), (100,), 250, (300, 130), 24)


def size_of(options: Options) -> Size:
    return _QUICK if options.quick else _FULL


# -- the pause


def fill(client: Client, n_tokens: int, seed: int) -> None:
    """The context ``base``, with all of its full chunks coded."""
    rng, words = random.Random(seed), _LETTERS.split()
    client.create(name="base")
    while (n := client.show("base").info.n_tokens) < n_tokens:
        client.append("base", prompt=" ".join(rng.choices(words, k=min(400, n_tokens - n))))
    late = time.monotonic() + LATE_S
    indices = range(n_tokens // CHUNK_TOKENS)
    while any(not client.export_chunks("base", [index], n_bytes=1).pieces for index in indices):
        assert time.monotonic() < late, "chunks were not coded in time"
        time.sleep(0.2)


def moved_once(a: NodeProcess, b: NodeProcess, n: str, way: str) -> dict[str, float]:
    with a.client() as here, b.client() as there:
        name = here.fork("base", name=f"move-{n}").name
        start = time.perf_counter()
        moved = here.move(name, "b", way=way)
        at = time.perf_counter()
        stream = there.generate(name, prompt=" And then", max_tokens=1)
        next(iter(stream))
        pause = time.perf_counter() - start
        recomputed = stream.done.switch.recomputed
        there.delete(name)
    return {"pause_s": pause, "move_s": at - start, "bytes": moved.n_bytes, "recomputed": recomputed}


def moved_while_answered(a: NodeProcess, b: NodeProcess, n: str, way: str, whole: int = 0) -> dict[str, float]:
    """``whole``: the answer has so many tokens, and is read to its end."""
    n_answer = whole or _ANSWER
    times, begun, has_moved = list[tuple[float, int]](), threading.Event(), threading.Event()
    with a.client() as here, b.client() as there:
        name = here.fork("base", name=f"answer-{n}").name

        def ask() -> None:
            with a.client() as asking:
                after = 0
                for piece in asking.generate(name, prompt=" And then", max_tokens=n_answer):
                    times.append((time.perf_counter(), len(piece.tokens)))
                    after += len(piece.tokens) if has_moved.is_set() else 0
                    if len(times) >= _PIECES:
                        begun.set()
                    if after > _AFTER and not whole:
                        return

        asker = threading.Thread(target=ask)
        asker.start()
        begun.wait(LATE_S)
        start, before = time.perf_counter(), b.link.n_passed
        moved = here.move(name, "b", way=way)
        moved_at, told, passed = time.perf_counter(), sum(n for _, n in times), b.link.n_passed - before
        has_moved.set()
        asker.join()
        there.delete(name)
    gaps = gaps_at(times, start, moved_at)
    return {
        "pause_s": max(gaps),
        "piece_s": median(gaps),
        "move_s": moved_at - start,
        "bytes": moved.n_bytes,
        "passed": passed,
        "told": sum(n for _, n in times),
        "left": n_answer - told,
    }


def gaps_at(times: Sequence[tuple[float, int]], start: float, moved_at: float) -> list[float]:
    """Between pieces, from the request to move to a few tokens behind the move. ``times``: when each piece came, and
    its tokens."""
    near, after = list[float](), 0
    for at, n_tokens in times:
        if after <= _AFTER:
            near.append(at)
            after += n_tokens if at > moved_at else 0
    return [later - earlier for earlier, later in pairwise(near) if later > start]


def answered(a: NodeProcess, b: NodeProcess, options: Options) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for mbit in size_of(options).answered:
        b.link.bits_per_s = mbit * 1e6
        of_way = of_ways(a, b, mbit, options)
        found |= {f"answered_{way}_{mbit}_mbit": of_way[way] for way in MOVE_WAYS}
    return found


def of_ways(a: NodeProcess, b: NodeProcess, mbit: int, options: Options) -> dict[str, dict[str, float]]:
    """The ways in turn, so that what else the machine does hits all of them."""
    runs, found = {way: list[dict[str, float]]() for way in MOVE_WAYS}, dict[str, dict[str, float]]()
    for i in range(2 if mbit < _BAR_MBIT else 3 if options.quick or mbit > _BAR_MBIT else 5):
        for way in MOVE_WAYS if not i else MOVE_WAYS[:2]:  # computing all takes a minute, on any link
            n = f"{way}-{mbit}-{i}"
            whole = size_of(options).whole if (way, mbit, i) == ("both", _BAR_MBIT, 0) else 0
            runs[way].append(options.kept.step(f"answered {n}", partial(moved_while_answered, a, b, n, way, whole)))
    for way, of_way in runs.items():
        found[way] = _middle(of_way, mbit) | {"left": min(run["left"] for run in of_way), "told": of_way[0]["told"]}
    return found


def bars_of_answers(figures: Mapping[str, Any], size: Size) -> list[Bar]:
    bars = []
    # Tokens alone pause as long on any link: each is moved so once, since that takes half a minute.
    tokens_pause = median([figures[f"answered_tokens_{mbit}_mbit"]["pause_s"] for mbit in size.answered])
    for mbit in size.answered:
        both, chunks, tokens = (figures[f"answered_{way}_{mbit}_mbit"] for way in MOVE_WAYS)
        left = min(of_way["left"] for of_way in (both, chunks, tokens))
        bars.append(Bar(f"tokens of the answer that were left when it had moved, {mbit} Mbit/s", left, 1))
        ratio = both["move_s"] / min(chunks["move_s"], tokens["move_s"])
        bar = 1.1 if mbit >= _BAR_MBIT else 0.85  # on a slow link both go on at once
        bars.append(Bar(f"both ways, against the better one, {mbit} Mbit/s", ratio, bar, True))
        # Of pauses that are as short as what lies between pieces anyway, nobody sees which is shorter.
        ratio = both["pause_s"] / max(2 * both["piece_s"], min(chunks["pause_s"], tokens_pause))
        bars.append(Bar(f"pause with both ways, against the better one, {mbit} Mbit/s", ratio, 1.1, True))
        ratio = chunks["passed"] / chunks["bytes"]
        bars.append(Bar(f"bytes on the link, against the chunks that went, {mbit} Mbit/s", ratio, 1.1, True))
    told = figures[f"answered_both_{_BAR_MBIT}_mbit"]["told"]
    bars.append(Bar(f"tokens told of an answer that moved, {_BAR_MBIT} Mbit/s", told, size.whole))
    pause = figures[f"answered_both_{_BAR_MBIT}_mbit"]["pause_s"]
    bars.append(Bar(f"pause of an answer that moves, {_BAR_MBIT} Mbit/s, seconds", pause, 0.2, True))
    return bars


def pauses(options: Options) -> tuple[dict[str, Any], list[Bar]]:
    size = size_of(options)
    figures: dict[str, Any] = options.kept.step("pauses", partial(_pauses, options, size))
    return figures, bars_of_answers(figures, size) + bars_at_rest(figures, size.rates)


def _pauses(options: Options, size: Size) -> dict[str, Any]:
    figures: dict[str, Any] = {"tokens": size.n_tokens}
    with two_nodes(options, "--cells", "8192") as (a, b):
        with a.client() as client:
            fill(client, size.n_tokens, options.seed)
        figures |= answered(a, b, options)
        # Computing all takes the same on any link: it is measured on one of them.
        for way, mbit in [*(("chunks", rate) for rate in size.rates), ("tokens", size.rates[-1])]:
            figures[f"{way}_{mbit}_mbit"] = at_rest(a, b, way, mbit, options)
    return figures


def same(options: Options) -> tuple[dict[str, Any], list[Bar]]:
    """Answers of which the cells are exact, moved and not."""
    figures = options.kept.step("same", partial(_same, options, *size_of(options).same))
    bars = [
        Bar("answers that moved and have the text of one that did not, 16 bits", figures["same"], len(MOVE_WAYS)),
        Bar("of these, that moved before their end", figures["moved_in_time"], len(MOVE_WAYS)),
    ]
    return figures, bars


def _same(options: Options, n_answer: int, n_tokens: int) -> dict[str, Any]:
    with two_nodes(options, "--cells", "2048", "--bits", "16/16") as (a, b):
        b.link.bits_per_s = _BAR_MBIT * 1e6
        with a.client() as here:
            fill(here, n_tokens, options.seed)
            here.fork("base", name="stays")
            unmoved = "".join(piece.text for piece in here.generate("stays", prompt=" And then", max_tokens=n_answer))
        moved = [_text_of(a, b, way, n_answer) for way in MOVE_WAYS]
    in_time = sum(in_time for _, in_time in moved)
    return {
        "same": sum(text == unmoved for text, _ in moved),
        "moved_in_time": in_time,
        "characters": len(unmoved),
    }


def _text_of(a: NodeProcess, b: NodeProcess, way: str, n_answer: int) -> tuple[str, bool]:
    """Of an answer that moves, and whether it did before its end."""
    pieces, begun = list[str](), threading.Event()
    with a.client() as here, b.client() as there:
        name = here.fork("base", name=f"same-{way}").name

        def ask() -> None:
            with a.client() as asking:
                for piece in asking.generate(name, prompt=" And then", max_tokens=n_answer):
                    pieces.append(piece.text)
                    begun.set()

        asker = threading.Thread(target=ask)
        asker.start()
        begun.wait(LATE_S)
        here.move(name, "b", way=way)
        in_time = asker.is_alive()
        asker.join()
        there.delete(name)
    return "".join(pieces), in_time


def at_rest(a: NodeProcess, b: NodeProcess, way: str, mbit: int, options: Options) -> dict[str, float]:
    b.link.bits_per_s = mbit * 1e6
    n_runs = 1 if way == "tokens" else 2 if mbit < _BAR_MBIT else 3 if options.quick else 7
    names = [f"{way}-{mbit}-{i}" for i in range(n_runs)]
    return _middle(
        [options.kept.step(f"at rest {n}", partial(moved_once, a, b, n, way)) for n in names],
        mbit,
    )


def bars_at_rest(figures: Mapping[str, Any], rates: Sequence[int]) -> list[Bar]:
    bars = []
    for mbit in rates:
        with_chunks = figures[f"chunks_{mbit}_mbit"]
        if mbit >= _BAR_MBIT:
            ratio = figures[f"tokens_{rates[-1]}_mbit"]["pause_s"] / with_chunks["pause_s"]
            bars.append(Bar(f"pause with tokens alone, against chunks, {mbit} Mbit/s", ratio, 1.0))
    at_100 = figures["chunks_100_mbit"]
    bars.append(Bar("a move at 100 Mbit/s, against its bytes alone", at_100["move_s"] / at_100["link_s"], 2.0, True))
    return bars


def _middle(runs: Sequence[Mapping[str, float]], mbit: int) -> dict[str, float]:
    found = {key: median([run[key] for run in runs]) for key in runs[0]}
    found["link_s"] = 8 * found["bytes"] / (mbit * 1e6)
    say(f"{mbit} Mbit/s: {found}")
    return found


# -- moves that fail


def faults(options: Options) -> tuple[dict[str, Any], list[Bar]]:
    figures = options.kept.step("faults", partial(hit_moves, options, size_of(options).n_moves))
    bars = [
        Bar("moves after which a turn that was acknowledged was missing", figures["lost"], 0, True),
        Bar("stores that are not sound at the end", figures["unsound_stores"], 0, True),
        Bar("moves that were hit, of all", 1 - figures["no fault"] / figures["moves"], 0.4),
    ]
    return figures, bars


def measure(options: Options) -> Result:
    folder = options.folder
    figures, bars = {}, list[Bar]()
    for name, part in (("pauses", pauses), ("same", same), ("faults", faults)):
        (folder / name).mkdir()
        found, more = part(replace(options, folder=folder / name))
        figures[name] = found
        bars += more
    return Result(options.model.name, figures, bars)


if __name__ == "__main__":
    sys.exit(main("migration", __doc__ or "", measure))
