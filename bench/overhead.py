"""What the service costs one client: decode and prefill speed against a bare llama.cpp loop.

The same work is done in three ways, which alternate in one run:

* bare: the bare loop in a process of its own (bench/lib/bare_loop.py: llama_decode and llama_sampler_sample on token
  ids; no text, no store, no other client);
* service: the service, called in this process;
* socket: a real daemon in a process of its own, over its Unix socket, with this process as the client.

Of the bare loop and of the daemon there are two processes each, and others after a third and two thirds of the rounds,
since one is up to 3 % quicker than another for as long as it runs, by where its memory lies, and often the one that
began first: a ratio is of the means of both in the same round, and that of ``again`` over ``bare`` says how far apart
two that do the same are.

Library, model, cells, threads and batch sizes are the same, and weights are copied into a faster order as llama.cpp
does it (repack = on; with auto a new daemon would measure whether that pays, beside the bench). A turn is a prompt into
a fresh context, and an answer. Prefill speed is prompt tokens over the time to the first token as the caller sees it
(tokenizing, queueing, switching included); decode speed is that of the tokens after the first.

``decode_after_append`` is a second look, without a bar: an answer right after a long append, while the chunks of that
append are coded and written in the background.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import Answer, InProcessClient, serving
from bench.lib.daemon import daemon
from bench.lib.engine import N_BATCH, N_UBATCH, Bare, engine
from bench.lib.stats import rotated, sig, summary
from bench.lib.texts import prose
from llmaas.api.client import Client
from llmaas.engine.thread import EngineThread
from llmaas.kvchunks.store.store import Store
from llmaas.planner.settings import PlannerChoices


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second."""

    prefill: float
    decode: float


Way = Callable[[], Awaitable[Speed]]
_TIMES = 3
"""So often all processes are started anew."""


def speed(n_prompt: int, begin: float, arrivals: Sequence[float]) -> Speed:
    """``arrivals``: when each token of the answer was there, in seconds as ``begin``."""
    if len(arrivals) < 2:
        raise RuntimeError("the model ended its answer at once; choose another --seed")
    return Speed(n_prompt / (arrivals[0] - begin), (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]))


# -- one turn, each way -----------------------------------------------------------------------------


async def in_process(client: InProcessClient, text: str, n_new: int, *, append_first: bool = False) -> Speed:
    """A turn through the service in this process. ``append_first``: the prompt comes with a call of its own."""
    context = await client.create()
    if append_first:
        await client.append(context, text)
    answer = client.generate(context, None if append_first else text, n_new)
    done = await answer.done()
    found = speed(max(1, done.n_prompt), answer.begin, answer.arrivals)
    await client.delete(context)
    await client.wait_idle()
    return found


async def over_socket(client: Client, text: str, n_new: int) -> Speed:
    """A turn through the daemon. The client blocks: nothing else is to happen in this process meanwhile."""
    context = client.create().id
    answer = Answer()
    stream = client.generate(context, prompt=text, max_tokens=n_new)
    for piece in stream:
        answer.record(piece)
    found = speed(stream.done.n_prompt, answer.begin, answer.arrivals)
    client.delete(context)
    return found


async def bare_loop(bare: Bare, tokens: Sequence[int], n_new: int) -> Speed:
    return speed(len(tokens), 0.0, bare.run(tokens, n_new)[1])


# -- the whole --------------------------------------------------------------------------------------


def measure(options: Options) -> Result:
    n_prompt, n_new, rounds = (384, 96, 11) if options.quick else (1024, 128, 11)
    with engine(options) as thread:
        text = prose(thread.engine, n_prompt, options.seed)
        speeds, after = asyncio.run(_measure(options, thread, text, n_new, rounds))
        n_tokens = len(thread.engine.tokenize(text, special=True, bos=True))
        model = thread.engine.info.name
    figures = {"prompt_tokens": n_tokens, "answer_tokens": n_new, **_figures(speeds)}
    figures["decode_after_append_over_bare"] = ratio_to_bare(after, "after", "decode")
    bars = [
        Bar(f"{what} through the {way} over the bare loop", figures[f"{what}_{way}_over_bare"], 0.98)
        for way in ("service", "socket")
        for what in ("decode", "prefill")
    ]
    return Result(model, figures, bars)


async def _measure(
    options: Options, thread: EngineThread, text: str, n_new: int, rounds: int
) -> tuple[dict[str, list[Speed]], dict[str, list[Speed]]]:
    """The speeds of the three ways, and those of an answer after an append beside the bare loop's."""
    tokens = thread.engine.tokenize(text, special=True, bos=True)
    speeds = dict[str, list[Speed]]()
    with Store(options.folder / "inside") as store:
        async with serving(thread, store) as service:
            inside = InProcessClient(service)
            for i, some in enumerate(parts(rounds, _TIMES)):
                with processes(options, i, tokens, text, n_new) as ways:
                    ways["service"] = lambda: in_process(inside, text, n_new)
                    for name, found in (await alternate(ways, some)).items():
                        speeds.setdefault(name, []).extend(found)
            with Bare(options) as bare:
                after: dict[str, Way] = {
                    "bare": lambda: bare_loop(bare, tokens, n_new),
                    "after": lambda: in_process(inside, text, n_new, append_first=True),
                }
                return speeds, await alternate(after, max(2, rounds // 2))


@contextmanager
def processes(options: Options, i: int, tokens: Sequence[int], text: str, n_new: int) -> Iterator[dict[str, Way]]:
    """New ones, one begun after the other. Daemons that began after the bare loops were 2 % slower than those, and as
    fast if they began before: so each kind has the first and the last in turn."""
    ways = dict[str, Way]()

    def begin(name: str) -> None:
        if name in _TWINS["bare"]:
            bare = stack.enter_context(Bare(options))
            bare.run(tokens[:1], 1)  # its memory is there now
            ways[name] = lambda: bare_loop(bare, tokens, n_new)
        else:
            socket, _ = stack.enter_context(daemon(options, f"{name}-{i}", "--repack", "on"))
            client = stack.enter_context(Client(socket, app="bench"))
            ways[name] = lambda: over_socket(client, text, n_new)

    with ExitStack() as stack:
        for name in ("bare", "socket", "second", "again") if i % 2 else ("socket", "bare", "again", "second"):
            begin(name)
        yield ways


def parts(rounds: int, times: int) -> list[int]:
    """
    >>> parts(11, 3)
    [4, 4, 3]
    """
    return [len(range(i, rounds, times)) for i in range(times)]


async def alternate(ways: dict[str, Way], rounds: int) -> dict[str, list[Speed]]:
    """Each way once a round, so that drift and load hit all alike; one more round goes before, to warm up.

    The way that begins a round is another one each time.
    """
    names = list(ways)
    found: dict[str, list[Speed]] = {name: [] for name in names}
    for i in range(rounds + 1):
        for name in rotated(names, i):
            one = await ways[name]()
            if i:
                found[name].append(one)
                say(f"round {i} {name:8} prefill {one.prefill:7.1f} decode {one.decode:7.1f} tokens/s")
    return found


def ratio_to_bare(speeds: dict[str, list[Speed]], way: str, what: str) -> float:
    """Median over the rounds of a way's speed over the bare speed in the same round; each is the mean of both processes
    if there are two. Of one of two, it is the speed over that of the other."""
    ours = _TWINS.get(way, (way,))
    theirs = _TWINS["bare"] if way not in _TWINS["bare"] else ("bare",)
    rounds = zip(_means(speeds, ours, what), _means(speeds, theirs, what), strict=True)
    return sig(median(one / bare for one, bare in rounds))


_TWINS: dict[str, tuple[str, ...]] = {"bare": ("bare", "again"), "socket": ("socket", "second")}


def _means(speeds: dict[str, list[Speed]], ways: tuple[str, ...], what: str) -> list[float]:
    """Of each round."""
    return [
        mean(getattr(one, what) for one in each) for each in zip(*(speeds[w] for w in ways if w in speeds), strict=True)
    ]


def _figures(speeds: dict[str, list[Speed]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for what in ("prefill", "decode"):
        for way in speeds:
            figures[f"{what}_{way}_tps"] = summary([getattr(one, what) for one in speeds[way]])
            if way != "bare":
                figures[f"{what}_{way}_over_bare"] = ratio_to_bare(speeds, way, what)
                best = {w: max(getattr(one, what) for one in speeds[w]) for w in (way, "bare")}
                figures[f"{what}_{way}_over_bare_best"] = sig(best[way] / best["bare"])
    figures["batch"] = {"n_batch": N_BATCH, "n_ubatch": N_UBATCH, "service_slice": PlannerChoices().prefill_slice}
    return figures


if __name__ == "__main__":
    sys.exit(main("overhead", __doc__ or "", measure))
