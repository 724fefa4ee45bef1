"""Plots as SVG, made by hand: a report is one file that needs nothing to be shown.

Law: pure; the same series make the same text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
"""Of one series after the other; an eleventh has the first one again."""
_WIDTH, _HEIGHT = 760, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 190, 14, 40


class Axis:
    """Values to pixels. A logarithmic axis leaves out what is not above 0."""

    def __init__(self, values: Iterable[float], begin: int, end: int, *, log: bool = False, zero: bool = False) -> None:
        self._log, self._begin, self._end = log, begin, end
        found = [self._place(v) for v in values if v > 0 or not log] or [0.0, 1.0]
        self._low, self._high = min(found), max(found)
        if zero and not log:
            self._low = min(0.0, self._low)
        if self._high - self._low < 1e-9:
            self._high = self._low + 1.0

    def _place(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def pixel(self, value: float) -> float:
        part = (self._place(value) - self._low) / (self._high - self._low)
        return round(self._begin + part * (self._end - self._begin), 1)

    def shows(self, value: float) -> bool:
        return value > 0 or not self._log

    def ticks(self) -> list[float]:
        if self._log:
            within = (1, 2, 5) if self._high - self._low < 2 else (1,)
            found = [m * 10.0**n for n in range(math.floor(self._low), math.ceil(self._high) + 1) for m in within]
            return [tick for tick in found if self._low <= self._place(tick) <= self._high]
        step = 10.0 ** math.floor(math.log10(self._high - self._low))
        step *= next(m for m in (1, 0.5, 0.25, 0.2, 0.1) if (self._high - self._low) / (step * m) >= 3)
        return [step * n for n in range(math.ceil(self._low / step), math.floor(self._high / step) + 1)]


def plot(
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    dots: bool = False,
) -> str:
    """An ``<svg>`` of lines, or of dots, with a legend."""
    points = [point for each in series.values() for point in each]
    x = Axis((p[0] for p in points), _LEFT, _WIDTH - _RIGHT, log=log_x)
    y = Axis((p[1] for p in points), _HEIGHT - _BOTTOM, _TOP, log=log_y, zero=True)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="11">', *_grid(x, y, x_label, y_label)]
    for i, (name, each) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        shown = [(x.pixel(a), y.pixel(b)) for a, b in each if x.shows(a) and y.shows(b)]
        if dots:
            parts += [f'<circle cx="{a}" cy="{b}" r="2.2" fill="{colour}" fill-opacity="0.7"/>' for a, b in shown]
        else:
            path = " ".join(f"{a},{b}" for a, b in shown)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        height = _TOP + 14 + 16 * i
        parts.append(f'<rect x="{_WIDTH - _RIGHT + 12}" y="{height - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 28}" y="{height}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _grid(x: Axis, y: Axis, x_label: str, y_label: str) -> Iterable[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for tick in x.ticks():
        at = x.pixel(tick)
        yield f'<line x1="{at}" y1="{_TOP}" x2="{at}" y2="{bottom}" stroke="#ddd"/>'
        yield f'<text x="{at}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>'
    for tick in y.ticks():
        at = y.pixel(tick)
        yield f'<line x1="{_LEFT}" y1="{at}" x2="{right}" y2="{at}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 5}" y="{at + 4}" text-anchor="end">{tick:g}</text>'
    yield f'<text x="{(_LEFT + right) // 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    middle = (_TOP + bottom) // 2
    yield f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y_label)}</text>'
