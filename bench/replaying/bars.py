"""What ``bench.replay --check`` holds the service to.

Law: every bar is a ratio of figures of one journal. One that needs a program that did not run is left out, and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.lib.cli import Bar
from bench.replaying.figures import ratio

Summaries = Mapping[str, Sequence[Mapping[str, Any]]]
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
_BEST = (("ttft_ms.p50", 20.0), ("ttft_ms.p99", 10.0), ("ttft_restart_ms.p50", 20.0))


def bars(summaries: Summaries, place: str) -> list[Bar]:
    """The bars whose programs ran. ``place``: which trace, for people."""
    return [bar for bar in _bars(summaries, place) if bar is not None]


def _bars(summaries: Summaries, place: str) -> Iterator[Bar | None]:
    ours = summaries.get(OURS, ())
    for name, path, bar in _ROWS:
        yield _bar(f"{place}: {path}, {name} / {OURS}", ratio(summaries.get(name, ()), ours, path), bar)
    for path, bar in _BEST:
        found = [ratio(summaries[name], ours, path) for name in _PEERS if name in summaries]
        known = [each for each in found if each is not None]
        yield _bar(f"{place}: {path}, the better llama-server / {OURS}", min(known, default=None), bar)


def missing(summaries: Summaries) -> list[str]:
    """Programs without which some bars are left out."""
    return [name for name in dict.fromkeys([OURS, *(row[0] for row in _ROWS), *_PEERS]) if name not in summaries]


def _bar(what: str, found: float | None, bar: float) -> Bar | None:
    return None if found is None else Bar(what, found, bar)
