"""What ``bench.replay --check`` holds the service to.

Law: every bar is a ratio of figures of one journal. One that needs a program that did not run is left out, and named.

Most of the time to a first token is the prefill of the new turn, which every program has to compute. So bars of that
time name their bound: the ratio of a service that had each context in CELLS at once, and only computed new turns. What
is wanted of a trace is at most ``OF_BOUND`` of what it allows: docs/decisions/050.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.lib.cli import Bar
from bench.lib.stats import sig
from bench.replaying.figures import ratio
from bench.replaying.systems import EXACT

Repeats = Sequence[Mapping[str, Any]]
Summaries = Mapping[str, Repeats]
"""Of each program, one for each repeat."""
OURS = "llmaas"
_PEERS = ("llama-server", "llama-server-slots")
"""llama-server without files: the better of these counts."""
_ROWS = (
    ("kill", "switch_ms.p50", 100.0),
    ("kill", "switch_ms.p99", 30.0),
    ("swap", "switch_ms.p50", 1.0),
    ("llama-server-files", "ttft_ms.p50", 1.0),
    ("llama-server-files", "ttft_ms.p99", 1.0),
    ("llama-server-files", "took.written_bytes", 4.0),
)
_PREFILL = {
    "ttft_ms.p50": "prefill_ms.p50",
    "ttft_ms.p99": "prefill_ms.p99",
    "ttft_restart_ms.p50": "prefill_restart_ms.p50",
}
"""The part of a figure of ours that no way of bringing a context back can shorten."""
_SWAP_ON_A_SLOW_DISK = 3.0
_WHERE_TEXT_IS_SHARED = 5.0
OF_BOUND = 0.8
"""Of the bound, where the wanted ratio is beyond it."""
_BEST = (("ttft_ms.p50", 20.0), ("ttft_ms.p99", 10.0), ("ttft_restart_ms.p50", 20.0))


def bars(
    summaries: Summaries, place: str, *, fits: bool = False, disk_held: bool = False, shared: bool = False
) -> list[Bar]:
    """The bars whose programs ran. ``place``: which trace, for people. ``fits``: memory holds all contexts, so there is
    nothing to gain, and the bar is to lose nothing. ``disk_held``: the disk was held to a rate. ``shared``: contexts
    begin with the same text, which llama-server finds in its slot whoever was there before, and has less to compute.
    """
    if fits:
        found = _bars_that_fit(summaries, place)
    elif shared:
        found = _bars_of_best(summaries, place, (("ttft_ms.p50", _WHERE_TEXT_IS_SHARED),))
    else:
        found = _bars(summaries, place, disk_held)
    return [bar for bar in found if bar is not None]


def answers_bar(same: float | None, place: str) -> list[Bar]:
    """At 16 bits answers are those of a run with RAM for everything; ``same``: the part of them that are."""
    return [] if same is None else [Bar(f"{place}: answers at 16 bits that are those of {EXACT}", same, 1.0)]


def _bars_that_fit(summaries: Summaries, place: str) -> Iterator[Bar | None]:
    path = "ttft_ms.p50"
    least = _least([summaries.get(name, ()) for name in _PEERS], summaries.get(OURS, ()), path)
    yield _bar(f"{place}: {path}, the better llama-server / {OURS}, all fits", least, 1.0)


def _bars(summaries: Summaries, place: str, disk_held: bool) -> Iterator[Bar | None]:
    ours = summaries.get(OURS, ())
    for name, path, bar in _ROWS:
        if name == "swap" and disk_held:
            bar = _SWAP_ON_A_SLOW_DISK
        theirs = summaries.get(name, ())
        what = f"{place}: {path}, {name} / {OURS}{_named(_bound([theirs], ours, path))}"
        yield _bar(what, ratio(theirs, ours, path), bar)
    yield from _bars_of_best(summaries, place, _BEST)


def _bars_of_best(summaries: Summaries, place: str, rows: Sequence[tuple[str, float]]) -> Iterator[Bar | None]:
    """Against the better llama-server."""
    ours, peers = summaries.get(OURS, ()), [summaries[name] for name in _PEERS if name in summaries]
    for path, bar in rows:
        bound = _bound(peers, ours, path)
        what = f"{place}: {path}, the better llama-server / {OURS}{_named(bound)}"
        if bound is not None and OF_BOUND * bound < bar:
            what, bar = f"{what}, {bar:g} wanted", sig(OF_BOUND * bound)
        yield _bar(what, _least(peers, ours, path), bar)


def _bound(theirs: Sequence[Repeats], ours: Repeats, path: str) -> float | None:
    """What the ratio would be if nothing but the new turns took time; None if that says nothing of this figure."""
    return _least(theirs, ours, path, _PREFILL[path]) if path in _PREFILL else None


def _named(bound: float | None) -> str:
    return "" if bound is None else f", bound {bound:g}"


def _least(theirs: Sequence[Repeats], ours: Repeats, path: str, our_path: str = "") -> float | None:
    """The ratio of the best of these programs."""
    found = [ratio(each, ours, path, our_path) for each in theirs]
    return min((each for each in found if each is not None), default=None)


def missing(summaries: Summaries) -> list[str]:
    """Programs without which some bars are left out."""
    return [name for name in dict.fromkeys([OURS, *(row[0] for row in _ROWS), *_PEERS]) if name not in summaries]


def _bar(what: str, found: float | None, bar: float) -> Bar | None:
    return None if found is None else Bar(what, found, bar)
