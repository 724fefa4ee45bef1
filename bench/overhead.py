"""What the service costs one client: decode and prefill speed against a bare llama.cpp loop.

Three ways to do the same work, alternating in one run, each in a process of its own: the bare loop (bare_loop.py:
llama_decode and llama_sampler_sample on token ids; no text, no store, no other client), the service called in this
process, and a real daemon over its Unix socket with this process as the client. Same library, model, cells, threads
and batch sizes. A turn is a prompt into a fresh context, and an answer: prefill speed is prompt tokens over the time to
the first token as the caller sees it (tokenizing, queueing and switching included); decode speed is that of the tokens
after the first.

``decode_after_append`` is a second look, without a bar: an answer right after a long append, while the chunks of that
append are coded and written in the background.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import daemon
from bench.lib.engine import N_BATCH, N_UBATCH, Bare, engine
from bench.lib.stats import sig, summary
from bench.lib.texts import prose
from llmaas.api.client import Client
from llmaas.calls import CallSpec, Done, Generation, Piece, Turn
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import Store
from llmaas.planner.settings import PlannerChoices
from llmaas.records import AppId
from llmaas.service.service import Service
from llmaas.service.settings import ServiceSettings

APP = AppId("0/bench")


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second."""

    prefill: float
    decode: float


def speed(n_prompt: int, begin: float, arrivals: list[float]) -> Speed:
    """``arrivals``: when each token of the answer was there."""
    if len(arrivals) < 2:
        raise RuntimeError("the model ended its answer at once; choose another --seed")
    return Speed(n_prompt / (arrivals[0] - begin), (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]))


# -- through the service --------------------------------------------------------------------------


class InProcess:
    """The service on an event loop of this process."""

    def __init__(self, thread: EngineThread, folder: Path) -> None:
        self._store = Store(folder)
        self._loop = asyncio.new_event_loop()
        self._service = Service(thread, self._store, ServiceSettings())
        self._loop.run_until_complete(self._service.start())

    def turn(self, text: str, n_new: int, *, append_first: bool = False) -> Speed:
        return self._loop.run_until_complete(self._turn(text, n_new, append_first))

    async def _turn(self, text: str, n_new: int, append_first: bool) -> Speed:
        context = (await self._service.create(APP, name=None, system=None)).id
        if append_first:
            await self._call(context, Turn(prompt=text), None, lambda piece: None)
        arrivals: list[float] = []

        def emit(piece: Piece) -> None:
            arrivals.extend([perf_counter()] * len(piece.tokens))

        begin = perf_counter()
        turn = Turn() if append_first else Turn(prompt=text)
        done = await self._call(context, turn, Generation(max_tokens=n_new), emit)
        found = speed(max(1, done.n_prompt), begin, arrivals)
        await self._service.delete(APP, context)
        await self._service.wait_idle()
        return found

    async def _call(
        self, context: str, turn: Turn, generation: Generation | None, emit: Callable[[Piece], None]
    ) -> Done:
        _, reply = self._service.submit(APP, context, CallSpec(turn, generation), emit)
        return await reply

    def close(self) -> None:
        self._loop.run_until_complete(self._service.stop())
        self._loop.close()
        self._store.close()


def over_socket(client: Client, text: str, n_new: int) -> Speed:
    context = client.create().id
    arrivals: list[float] = []
    begin = perf_counter()
    answer = client.generate(context, prompt=text, max_tokens=n_new)
    for piece in answer:
        arrivals += [perf_counter()] * len(piece.tokens)
    found = speed(answer.done.n_prompt, begin, arrivals)
    client.delete(context)
    return found


# -- the whole ------------------------------------------------------------------------------------


def measure(options: Options) -> Result:
    n_prompt, n_new, rounds = (384, 96, 7) if options.quick else (1024, 128, 11)
    with (
        Bare(options) as bare,
        engine(options) as thread,
        daemon(options, "daemon") as (socket, _),
        Client(socket, app="bench") as client,
    ):
        text = prose(thread.engine, n_prompt, options.seed)
        tokens = thread.engine.tokenize(text, special=True, bos=True)
        inside = InProcess(thread, options.folder / "inside")
        ways: dict[str, Callable[[], Speed]] = {
            "bare": lambda: speed(len(tokens), 0.0, bare.run(tokens, n_new)[1]),
            "service": lambda: inside.turn(text, n_new),
            "socket": lambda: over_socket(client, text, n_new),
        }
        speeds = alternate(ways, rounds)
        after = alternate(
            {"bare": ways["bare"], "after": lambda: inside.turn(text, n_new, append_first=True)}, max(2, rounds // 2)
        )
        inside.close()
        model = thread.engine.info.name
    figures = {"prompt_tokens": len(tokens), "answer_tokens": n_new, **_figures(speeds)}
    figures["decode_after_append_over_bare"] = _ratio(after, "after", "decode")
    bars = [
        Bar(f"{what} through the {way} over the bare loop", figures[f"{what}_{way}_over_bare"], 0.98)
        for way in ("service", "socket")
        for what in ("decode", "prefill")
    ]
    return Result(model, figures, bars)


def alternate(ways: dict[str, Callable[[], Speed]], rounds: int) -> dict[str, list[Speed]]:
    """Each way once a round, in turning order, so that drift and load hit all alike; a round before that to warm up."""
    names = list(ways)
    found: dict[str, list[Speed]] = {name: [] for name in names}
    for i in range(rounds + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            one = ways[name]()
            if i:
                found[name].append(one)
                say(f"round {i} {name:8} prefill {one.prefill:7.1f} decode {one.decode:7.1f} tokens/s")
    return found


def _ratio(speeds: dict[str, list[Speed]], way: str, what: str) -> float:
    """Median over the rounds of a way's speed over the bare speed in the same round."""
    rounds = zip(speeds[way], speeds["bare"], strict=True)
    return sig(median(getattr(one, what) / getattr(bare, what) for one, bare in rounds))


def _figures(speeds: dict[str, list[Speed]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for what in ("prefill", "decode"):
        for way in speeds:
            figures[f"{what}_{way}_tps"] = summary([getattr(one, what) for one in speeds[way]])
            if way != "bare":
                figures[f"{what}_{way}_over_bare"] = _ratio(speeds, way, what)
                best = {w: max(getattr(one, what) for one in speeds[w]) for w in (way, "bare")}
                figures[f"{what}_{way}_over_bare_best"] = sig(best[way] / best["bare"])
    figures["batch"] = {"n_batch": N_BATCH, "n_ubatch": N_UBATCH, "service_slice": PlannerChoices().prefill_slice}
    return figures


if __name__ == "__main__":
    sys.exit(main("overhead", __doc__ or "", measure))
