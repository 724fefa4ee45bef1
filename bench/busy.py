"""Prefill and decode beside other processes that want the CPU: llmaas, one thread, and llama-server.

Beside 0, 1, 2 and 4 processes that hash without an end, the same turn, a prompt into a fresh context and an answer, is
done in three ways, which alternate in one run:

* llmaas: a real daemon, over its Unix socket, with as many threads at most as there are cores;
* one thread: the bare llama.cpp loop (bench/lib/bare_loop.py) with a single thread, which waits for no other;
* llama-server: that of the package xllamacpp, with as many threads as there are cores, and else its own defaults.

Each goes through a short turn first, which is not measured: the question is what a busy machine gives, not how soon a
program notices that it is busy.

**One thread's fair share.** Beside N processes that never wait, one thread on C cores is due min(1, C / (N + 1)) of a
core's time. So its fair share is that part of its speed while it runs: tokens per second of its own CPU time, measured
in the same round beside the same processes. So what they take of caches and clock frequency is in it, and how evenly
the kernel gave out the time in that round is not. llmaas may use more than one thread, and get more time.

Bars: llmaas reaches 0.95 of one thread's fair share, and all of llama-server's speed, in prefill and decode, beside any
number of processes (medians over rounds of ratios within a round). With nothing beside both run the same llama.cpp, so
the ratio is 1 but for noise, and below it every other time: there, what counts as below is less than 1 by more than two
of the median's standard errors over the rounds (at one of them, every sixth run of two equals would fail). llama-server
needs the package xllamacpp, in an environment of its own: BENCH_XLLAMACPP is the Python that has it. Without it that
column is left out.

``--model`` may be given several times.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

from bench.lib import llama_server
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import daemon
from bench.lib.engine import CELLS, Bare, engine
from bench.lib.llama_server import LlamaServer
from bench.lib.neighbour import Busy
from bench.lib.probes import cpu
from bench.lib.stats import error_of_median, rotated, sig, summary
from bench.lib.texts import prose
from llmaas.api.client import Client

PLACES = (0, 1, 2, 4)
"""Busy processes beside."""
WHATS = ("prefill", "decode")
LLMAAS, ONE_THREAD, SERVER = "llmaas", "one_thread", "llama_server"
_FAIR = 0.95
_LONGEST_ANSWER_S = 3.0
"""llama-server may need seconds for a token: no answer of it is longer."""
_TURNS = 3
"""In each round and place: the speed of a virtual machine changes by a tenth from one turn to the next. Beside others
llama-server has one: it may take seconds for a token, and does not tie there."""
_SETTLE = 96, 8
"""Tokens of prompt and answer of the turn that is not measured."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Tokens per second, and tokens per second of CPU time."""

    prefill: float
    decode: float
    prefill_cpu: float
    decode_cpu: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text, and the tokens that it is for a program that takes only those."""

    text: str
    tokens: Sequence[int]


Way = Callable[[Prompt, int], Turn]


def turn(n_prompt: int, drawn: Sequence[float], spent: Sequence[float]) -> Turn:
    """``drawn``: seconds to each token; ``spent``: CPU seconds until the first and from there on."""
    if len(drawn) < 2:
        raise RuntimeError("the model ended its answer at once; choose another --seed")
    n = len(drawn) - 1
    return Turn(n_prompt / drawn[0], n / (drawn[-1] - drawn[0]), n_prompt / spent[0], n / spent[1])


def fair_share(cores: int, busy: int) -> float:
    """What one thread is due beside ``busy`` processes that never wait, as a part of a core's time.

    >>> fair_share(2, 1), fair_share(2, 4)
    (1.0, 0.4)
    """
    return min(1.0, cores / (busy + 1))


# -- one turn, each way -----------------------------------------------------------------------------


def over_socket(client: Client, pid: int, prompt: Prompt, n_new: int) -> Turn:
    """Through the daemon with the process id ``pid``."""
    context = client.create().id
    spent, drawn, begin = [cpu(pid)], [], perf_counter()
    stream = client.generate(context, prompt=prompt.text, max_tokens=n_new)
    for piece in stream:
        drawn += [perf_counter() - begin] * len(piece.tokens)
        if len(spent) == 1 and drawn:
            spent.append(cpu(pid))
    spent.append(cpu(pid))
    found = turn(stream.done.n_prompt, drawn, (spent[1] - spent[0], spent[2] - spent[1]))
    client.delete(context)
    return found


def bare(loop: Bare, prompt: Prompt, n_new: int) -> Turn:
    return turn(len(prompt.tokens), *loop.timed(prompt.tokens, n_new))


def served(server: LlamaServer, prompt: Prompt, n_new: int) -> Turn:
    return turn(len(prompt.tokens), *server.timed(prompt.tokens, n_new, _LONGEST_ANSWER_S))


# -- the whole --------------------------------------------------------------------------------------


def measure(options: Options) -> Result:
    program = llama_server.python()
    if program is None:
        say(llama_server.HOW_TO_INSTALL)
    models: dict[str, Any] = {}
    bars: list[Bar] = []
    for each in options.each():
        name, found, n_tokens = _measure_model(each, program)
        rows = [row(found, busy, options.threads) for busy in PLACES]
        models[name] = {"prompt_tokens": n_tokens, "places": rows}
        bars += bars_of(name, rows)
        _print(name, rows)
    version = llama_server.version(program) if program else None
    return Result(", ".join(models), {"xllamacpp": version, "cores": options.threads, "models": models}, bars)


def _measure_model(options: Options, program: str | None) -> tuple[str, dict[tuple[int, str], list[Turn]], int]:
    """The model's name, the turns of each place and way, a round each, and the prompt's tokens."""
    n_prompt, n_new, rounds = (160, 20, 2) if options.quick else (512, 64, 4)
    with engine(options, 256) as thread:  # only for its tokenizer and the model's name
        name = thread.engine.info.name
        prompts = []
        for n in (n_prompt, _SETTLE[0]):
            text = prose(thread.engine, n, options.seed)
            prompts.append(Prompt(text, thread.engine.tokenize(text, special=True, bos=True)))
    found: dict[tuple[int, str], list[Turn]] = {}
    with ExitStack() as stack:
        ways = _ways(options, program, stack)
        others = Busy(max(PLACES))
        stack.callback(others.close)
        for i in range(rounds):
            for busy in PLACES:
                with others.hashing(busy):
                    for number, way in _order(list(ways), i, busy, options.quick):
                        ways[way](prompts[1], _SETTLE[1])
                        one = ways[way](prompts[0], n_new)
                        found.setdefault((busy, way), []).append(one)
                        say(f"{name} round {i}.{number} beside {busy} {way:12} {_shown(one)}")
    return name, found, len(prompts[0].tokens)


def _order(ways: Sequence[str], i: int, busy: int, quick: bool) -> Iterator[tuple[int, str]]:
    """The turns of round ``i`` beside ``busy`` processes: each turn's number and its way."""
    for number in range(1 if quick and busy else _TURNS):
        for way in rotated(ways, i * _TURNS + number):
            if not (number and busy and way == SERVER):
                yield number, way


def _ways(options: Options, program: str | None, stack: ExitStack) -> dict[str, Way]:
    socket, pid = stack.enter_context(daemon(options, "daemon", endless=True))
    client = stack.enter_context(Client(socket, app="bench"))
    loop = stack.enter_context(Bare(replace(options, threads=1)))
    ways: dict[str, Way] = {
        LLMAAS: lambda prompt, n_new: over_socket(client, pid, prompt, n_new),
        ONE_THREAD: lambda prompt, n_new: bare(loop, prompt, n_new),
    }
    if program is not None:
        server = stack.enter_context(LlamaServer(program, str(options.model), options.threads, CELLS))
        ways[SERVER] = lambda prompt, n_new: served(server, prompt, n_new)
    return ways


def row(found: dict[tuple[int, str], list[Turn]], busy: int, cores: int) -> dict[str, Any]:
    """The figures beside ``busy`` processes: for prefill and decode each way's speed and ratios within the rounds."""
    turns = {way: found[busy, way] for way in (LLMAAS, ONE_THREAD, SERVER) if (busy, way) in found}
    figures: dict[str, Any] = {"busy": busy}
    for what in WHATS:
        fair = [getattr(one, f"{what}_cpu") * fair_share(cores, busy) for one in turns[ONE_THREAD]]
        speeds = {way: [float(getattr(one, what)) for one in each] for way, each in turns.items()}
        cores_used = {way: [getattr(one, what) / getattr(one, f"{what}_cpu") for one in turns[way]] for way in turns}
        figures[what] = {
            **{f"{way}_tps": summary(values) for way, values in speeds.items()},
            **{f"{way}_cores": sig(median(values)) for way, values in cores_used.items()},
            "fair_share_tps": summary(fair),
            "over_fair_share": _ratio(speeds[LLMAAS], fair),
        }
        if SERVER in speeds:
            first = speeds[LLMAAS][:: len(speeds[LLMAAS]) // len(speeds[SERVER])]  # of each round that it took part in
            ratios = _ratios(first, speeds[SERVER])
            figures[what]["over_llama_server"] = sig(median(ratios))
            figures[what]["over_llama_server_error"] = sig(error_of_median(ratios))
    return figures


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return sig(median(_ratios(ours, theirs)))


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def bars_of(model: str, rows: Sequence[dict[str, Any]]) -> list[Bar]:
    bars = []
    for one in rows:
        for what in WHATS:
            name = f"{model}: {what} beside {one['busy']}"
            bars.append(Bar(f"{name} over one thread's fair share", one[what]["over_fair_share"], _FAIR))
            if "over_llama_server" in one[what]:
                ratio, error = one[what]["over_llama_server"], one[what]["over_llama_server_error"]
                noise = 2 * error / ratio if one["busy"] == 0 else 0.0
                bars.append(Bar(f"{name} over llama-server", ratio, sig(1.0 - noise)))
    return bars


def _shown(one: Turn) -> str:
    return (
        f"prefill {one.prefill:7.1f} decode {one.decode:7.1f} tokens/s,"
        f" on {one.prefill / one.prefill_cpu:.2f} and {one.decode / one.decode_cpu:.2f} cores"
    )


def _print(model: str, rows: Sequence[dict[str, Any]]) -> None:
    """The table, for people."""
    names = (LLMAAS, ONE_THREAD, "fair_share", SERVER)
    say(f"\n{model}, tokens/s{'':10}" + "".join(f"{name.replace('_', ' '):>14}" for name in names))
    for what in WHATS:
        for one in rows:
            cells = [one[what].get(f"{name}_tps") for name in names]
            shown = "".join(f"{cell['median']:>14.1f}" if cell else f"{'-':>14}" for cell in cells)
            say(f"{what:7} beside {one['busy']:<{len(model) + 5}}" + shown)


if __name__ == "__main__":
    sys.exit(main("busy", __doc__ or "", measure))
