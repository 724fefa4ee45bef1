"""What a trace is like, in numbers: how often, how long, and how often another context is called.

Law: pure; quantiles are of calls unless the name says otherwise.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from llmaas.traces.call import TraceCall

_SHOWN = 50, 90, 99


def summary(calls: Sequence[TraceCall]) -> dict[str, float | int]:
    """The figures by name. ``returns_at_N``: the part of the returns to a context that N others were called since."""
    lengths: Counter[tuple[str, str]] = Counter()
    for call in calls:
        lengths[call.app, call.context] += call.prompt + call.generate
    gaps = [b.t - a.t for a, b in pairwise(calls)]
    depths = _depths(calls)
    switches = [a for a, b in pairwise(calls) if (a.app, a.context) != (b.app, b.context)]
    return {
        "calls": len(calls),
        "hours": (calls[-1].t - calls[0].t) / 3600 if calls else 0.0,
        "apps": len({call.app for call in calls}),
        "contexts": len(lengths),
        "with_text": sum(call.text is not None for call in calls),
        "shared_prefixes": len({call.prefix for call in calls if call.prefix}),
        **_quantiles("gap_s", gaps),
        **_quantiles("prompt", [call.prompt for call in calls]),
        **_quantiles("generate", [call.generate for call in calls]),
        **_quantiles("context_tokens", list(lengths.values())),
        "switches": len(switches) / max(1, len(gaps)),
        **{f"returns_at_{n}": depths[n] / max(1, sum(depths.values())) for n in range(3)},
        "returns_at_3_or_more": sum(count for n, count in depths.items() if n > 2) / max(1, sum(depths.values())),
    }


def _depths(calls: Sequence[TraceCall]) -> Counter[int]:
    """How many returns to a context there were, by the number of other contexts called in between."""
    stack: list[tuple[str, str]] = []
    found: Counter[int] = Counter()
    for call in calls:
        key = call.app, call.context
        if key in stack:
            found[stack.index(key)] += 1
            stack.remove(key)
        stack.insert(0, key)
    return found


def _quantiles(name: str, values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {f"{name}_p{p}": values[0] if values else 0.0 for p in _SHOWN}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"{name}_p{p}": round(cuts[p - 1], 3) for p in _SHOWN}
