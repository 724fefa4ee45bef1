"""Two models, each with a call that runs: what happens to the other's stream when one's process is killed.

A real daemon serves them. Each round asks both for a long answer, kills the process of one (SIGKILL), and connects to
it again at once. Measured are the longest pause between tokens that the other's client sees, from the kill until the
killed model has answered again, and the same span of time without a kill beside it; how long the killed model takes to
its next first token, after a prompt of one, against how long its start took (of a daemon that has loaded it before: at
its first load it tries out how the disk is read best); how its call ended; and that all turns that were acknowledged
are there.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.several_models import SeveralModels
from bench.lib.stats import sig
from llmaas.api.client import Client
from llmaas.errors import LlmaasError
from llmaas.records import Message

MOST_PAUSE_S, MORE_S = 0.1, 1.0
"""Between two tokens of the other model; beyond the time that loading took, until the killed one serves again."""
CELLS, CALM_S, LONG = 4096, 3.0, 1500
_BEGIN_S, _SETTLE_S = 60.0, 4.0
"""Until answers begin; until the daemon has loaded the packages that its processes share."""
_ASKS = (
    [Message("user", "Write a very long story about the sea, with many chapters.")],
    [Message("user", "Count from one to two thousand, one number a line, and leave none out.")],
)
"""A coding model declines the first in a dozen tokens, a small one the second."""
_SHORT = 16
"""Tokens: with shorter answers there is nothing to see between them."""


class Streaming:
    """A call on a thread of its own, asked anew when it ends; when each of its tokens came."""

    def __init__(self, client: Client, name: str) -> None:
        self.times: list[float] = []
        self.ended_with: LlmaasError | None = None
        self._client, self._name, self._stop = client, name, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number, asks = 0, deque(_ASKS)
        while not self._stop.is_set():
            number += 1
            context = self._client.context(f"{self._name}-{number}-{monotonic()}")
            try:
                with self._client.generate(context.id, asks[0], max_tokens=LONG) as answer:
                    n_before = len(self.times)
                    for _ in answer:
                        self.times.append(monotonic())
                        if self._stop.is_set():
                            return
                if len(self.times) - n_before < _SHORT:
                    asks.popleft()
                    if not asks:
                        raise RuntimeError("the model's answers are too short for this bench")
                self._client.delete(context.id)
            except LlmaasError as error:
                self.ended_with = error
                return

    def longest_pause(self, begin: float, end: float) -> float:
        """Between tokens that came in this span of time, whose borders count as tokens."""
        times = [begin, *(t for t in list(self.times) if begin < t < end), end]
        return max(b - a for a, b in itertools.pairwise(times))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def one_round(house: SeveralModels, number: int) -> dict[str, Any]:
    with Client(house.socket, app="bench", model="m0") as keeper, Client(house.socket, app="bench", model="m1") as b:
        kept = keeper.context(f"kept-{number}")
        answer = kept.ask("Say hello.", max_tokens=4)
        other = Streaming(b, f"other-{number}")
        with Client(house.socket, app="bench", model="m0") as a:
            killed = Streaming(a, f"killed-{number}")
            late = monotonic() + _BEGIN_S
            while not (other.times and killed.times):
                if monotonic() > late:
                    raise RuntimeError("no answer has begun")
                sleep(0.01)
            calm = monotonic()
            sleep(CALM_S)
            began = monotonic()
            house.process_of("m0").kill()
            with Client(house.socket, app="bench", model="m0") as again:
                context = again.context(f"again-{number}")
                with again.generate(context.id, prompt=" So", max_tokens=1) as first:
                    next(first)
                back = monotonic()
                shown = [message.content for message in again.show(kept.id).messages if message.role != "system"]
            killed.stop()
        other.stop()
    return {
        "pause_s": other.longest_pause(began, back),
        "calm_pause_s": other.longest_pause(calm, began),
        "back_s": back - began,
        "code": killed.ended_with.code if killed.ended_with is not None else "",
        "kept": shown == ["Say hello.", answer],
    }


def begun(options: Options, files: Sequence[Path]) -> tuple[SeveralModels, float]:
    """Both models are there, and have answered; how many seconds loading the first took, by a daemon that is there."""
    house = SeveralModels(options, files, CELLS, "--models-bytes", "64G")
    try:
        sleep(_SETTLE_S)
        began = monotonic()
        with Client(house.socket, app="bench", model="m0") as client:
            load = monotonic() - began
            client.context("warm").ask("Hello.", max_tokens=1)
        with Client(house.socket, app="bench", model="m1") as client:
            client.context("warm").ask("Hello.", max_tokens=1)
        return house, load
    except BaseException:
        house.close()
        raise


def measure(options: Options) -> Result:
    files = (options.models * 2)[:2]
    begun(options, files)[0].close()
    house, load = begun(options, files)
    try:
        found = []
        for number in range(2 if options.quick else 5):
            found.append(one_round(house, number))
            say(f"round {number + 1}: {found[-1]}")
    finally:
        house.close()
    pause, calm = max(each["pause_s"] for each in found), max(each["calm_pause_s"] for each in found)
    back = median(each["back_s"] for each in found)
    figures = {
        "rounds": len(found),
        "longest_pause_s": sig(pause),
        "longest_pause_without_kill_s": sig(calm),
        "load_s": sig(load),
        "back_s": sig(back),
        "codes": sorted({each["code"] for each in found}),
        "acknowledged_turns_kept": all(each["kept"] for each in found),
    }
    said = sum(each["code"] == "engine_failed" and each["kept"] for each in found)
    bars = [
        Bar("longest pause of the other model's stream (s)", pause, MOST_PAUSE_S, at_most=True),
        Bar("killed to first token, beyond the time of loading (s)", back - load, MORE_S, at_most=True),
        Bar("rounds whose killed call said engine_failed and whose turns are kept", said, len(found)),
    ]
    return Result(" ".join(file.stem for file in files), figures, bars)


if __name__ == "__main__":
    sys.exit(main("killed", __doc__ or "", measure))
