"""Where the time of a pause went."""

from __future__ import annotations

from llmaas.clock import ManualClock
from llmaas.nodes.pause import Pause


def test_it_says_what_took_how_long() -> None:
    clock = ManualClock()
    pause = Pause(clock)
    clock.advance(0.25)
    pause.mark("stopped")
    clock.advance(0.5)
    pause.mark("first token there")
    assert pause.seconds == 0.75
    assert str(pause) == "750 ms (stopped 250, first token there 500)"
