"""How long an app's user waits: with the switch, and if the context were computed again.

Law: arithmetic on what was measured; reads nothing else.
"""

from __future__ import annotations

from llmaas.cli.demo.records import CELLS, TOGETHER, DemoFindings, p50
from llmaas.frozen import frozen


@frozen
class Waits:
    """Medians of one app, in milliseconds; ``source`` is the slowest tier that most of its switches came from."""

    app: str
    tokens: int
    source: str
    again_ms: float
    switch_ms: float
    first_ms: float
    """From the request to the first token, the switch and the new message's prefill included."""


def waits_of(app: str, findings: DemoFindings) -> Waits:
    """The waits of ``app``, which has had a turn.

    Turns that found the context in CELLS needed no switch, and those of all apps at once wait for each other: they
    count only if the app has no others. Where the context was not computed again, the time is that of as many tokens on
    the line through all measured prefills.
    """
    turns = [turn for turn in findings.turns if turn.app == app]
    turns = [turn for turn in turns if turn.part != TOGETHER] or turns
    turns = [turn for turn in turns if turn.source != CELLS] or turns
    tokens = int(p50([turn.switched_in for turn in turns]))
    again = [prefill.ms for prefill in findings.prefills if prefill.app == app and prefill.again]
    sources = [turn.source for turn in turns]
    return Waits(
        app,
        tokens,
        max(sources, key=sources.count),
        p50(again or [findings.prefill_ms(tokens)]),
        p50([turn.switch_ms for turn in turns]),
        p50([turn.ttft_ms for turn in turns]),
    )
