"""Three models of which two fit, each with four contexts: how soon one that is not in memory answers in a context.

A real daemon serves them, each by a process of its own. Its contexts are filled once; then the models are asked in
turn, so that each time the one that is asked has been put away. Its file is in the page cache. Measured is the time
from sending the request, on a connection that has been open all the time, to the first token, and how many tokens were
computed again. Beside it: a program that loads the model anew and prefills as many tokens (llama.cpp as it comes).

What is gained grows with the length of contexts, whose prefill is what is saved: ``--tokens`` says how long they are.
``--model`` may be given several times; of fewer than three the first ones are taken again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any

from bench.lib.bare_loop import BareLoop
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.several_models import SeveralModels
from bench.lib.stats import sig
from llmaas.api.client import Client, ClientContext
from llmaas.cli.serve_several import cell_bytes
from llmaas.model_files.gguf import examine_files

MOST_S, GAIN, LEFT_MB = 1.0, 10.0, 20.0
"""To the first token of a model that was away; against loading and prefilling anew; what may stay in memory."""
MODELS, CONTEXTS, TOKENS, MOST_TOKENS = 3, 4, 2048, 8192
_LEAST_TOKENS, _MARGIN = 64, 512
"""Of a context; cells for turns and answers beside the contexts."""
_POOL, _PROGRAM, _SLACK = 256 << 20, 150 << 20, 100 << 20
"""Bytes: of each model's POOL; what the daemon expects of a process beside that, its weights and its cells; and of the
process that makes the others, and a little."""
_SETTLE_S, _AWAY_S = 4.0, 60.0
"""Seconds until another process waits for a model; for a model to leave."""
_TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. "


def first_token(client: Client, context: ClientContext) -> tuple[float, int]:
    """Seconds to the first token of an answer, and how many tokens were computed again for it."""
    began = monotonic()
    with client.generate(context.id, prompt=" So", max_tokens=1) as answer:
        next(answer)
        seconds = monotonic() - began
        return seconds, answer.done.switch.recomputed


def unloaded(options: Options) -> dict[str, float]:
    """MB of all processes: before a model is loaded, while it is there, and after it has left."""
    folder = options.folder / "unloaded"
    folder.mkdir()
    house = SeveralModels(replace(options, folder=folder), options.models[:1] * 2, 2048, "--keep-alive", "2")
    try:
        sleep(_SETTLE_S)
        before = house.memory()
        with Client(house.socket, app="bench", model="m0") as client:
            client.append(client.context("c").id, prompt=_TEXT * 14)
            there = house.memory()
        late = monotonic() + _AWAY_S
        while house.state_of("m0") != "away":
            if monotonic() > late:
                raise RuntimeError("the model does not leave")
            sleep(0.1)
        sleep(_SETTLE_S)
        after = house.memory()
    finally:
        house.close()
    return {"before_mb": sig(before / 1e6), "loaded_mb": sig(there / 1e6), "after_mb": sig(after / 1e6)}


def anew(file: Path, threads: int, n_tokens: int) -> float:
    """Seconds that a program takes to its first token that loads the model and prefills the context's tokens."""
    began = monotonic()
    cells = -(-(n_tokens + _MARGIN) // 256) * 256
    BareLoop(str(file), threads, cells, 512, 128, 1, 1).run([100 + i % 1000 for i in range(n_tokens)], 1, [])
    return monotonic() - began


def budget(files: Sequence[Path], cells: int) -> int:
    """Bytes for which the two largest have room, and no third."""
    needs = []
    for file in files:
        facts, size = examine_files(file)
        needs.append(size + _PROGRAM + _POOL + cells * cell_bytes(facts))
    return sum(sorted(needs)[-2:]) + _SLACK


def filled(client: Client, name: str, n_tokens: int) -> ClientContext:
    """A context of about so many tokens, whose text differs from that of others at its start: no chunk is shared."""
    context = client.context(name)
    client.append(context.id, prompt=f"Story {name}. ")
    before = context.show().info.n_tokens
    client.append(context.id, prompt=_TEXT)
    each = context.show().info.n_tokens - before
    client.append(context.id, prompt=_TEXT * max(1, round((n_tokens - before) / each - 1)))
    return context


def measure(n_tokens: int, options: Options) -> Result:
    asked, n_tokens = (2, n_tokens // 4) if options.quick else (3 * CONTEXTS, n_tokens)
    files = (options.models * MODELS)[:MODELS]
    cells = CONTEXTS * (n_tokens + _MARGIN)
    more = ("--models-bytes", str(budget(files, cells)), "--pool-bytes", str(_POOL))
    house = SeveralModels(options, files, cells, *more)
    names = house.names
    times: dict[str, list[float]] = {name: [] for name in names}
    near: dict[str, list[float]] = {name: [] for name in names}
    """Of models that were in memory yet."""
    again: list[int] = []
    lengths: dict[str, int] = {}
    try:
        clients: dict[str, Client] = {}
        contexts: dict[str, list[ClientContext]] = {}
        for name in names:  # one after another: else each would be loaded once more for its first context
            client = clients[name] = Client(house.socket, app="bench", model=name)
            contexts[name] = [filled(client, f"c{i}", n_tokens) for i in range(CONTEXTS)]
            lengths[name] = contexts[name][0].show().info.n_tokens
            say(f"{name}: {CONTEXTS} contexts of {lengths[name]} tokens")
        for i in range(asked):
            for name in names:
                away = house.state_of(name) != "ready"
                seconds, recomputed = first_token(clients[name], contexts[name][i % CONTEXTS])
                (times if away else near)[name].append(seconds)
                again.append(recomputed)
            say(", ".join(f"{name} {found[-1]:.2f} s" for name, found in times.items() if found))
    finally:
        house.close()
    if not any(times.values()):
        raise RuntimeError("no model was ever away: all of them had room")
    n_of = dict(zip(files, lengths.values(), strict=True))
    once = {file: anew(file, options.threads, n) for file, n in n_of.items()}
    other = [once[file] for file in files]
    return _result(options, lengths, times, near, again, other, unloaded(options))


def _result(
    options: Options,
    lengths: dict[str, int],
    times: dict[str, list[float]],
    near: dict[str, list[float]],
    again: list[int],
    other: list[float],
    memory: dict[str, float],
) -> Result:
    middle = {name: median(found) for name, found in times.items() if found}
    more_mb = memory["after_mb"] - memory["before_mb"]
    gain = median(bare / middle[name] for bare, name in zip(other, times, strict=True) if name in middle)
    figures: dict[str, Any] = {
        "tokens": lengths,
        "first_token_s": {name: sig(value) for name, value in middle.items()},
        "in_memory_s": {name: sig(median(found)) for name, found in near.items() if found},
        "anew_s": [sig(value) for value in other],
        "most_computed_again": max(again),
        "gain": sig(gain),
        "memory": memory,
    }
    bars = [
        Bar("first token of a model that was away (s)", max(middle.values()), MOST_S, at_most=True),
        Bar("against loading and prefilling anew", gain, GAIN),
        Bar("tokens of a context that were computed again", max(again), 64, at_most=True),
        Bar("memory when a model has left, beyond before (MB)", more_mb, LEFT_MB, at_most=True),
    ]
    return Result(" ".join(file.stem for file in options.models), figures, bars)


if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--tokens", type=int, default=TOKENS, help="of each context, about (default %(default)s)")
    given, sys.argv[1:] = own.parse_known_args()  # what is left are the options of all benches
    if not _LEAST_TOKENS <= given.tokens <= MOST_TOKENS:
        own.error(f"--tokens must be {_LEAST_TOKENS} to {MOST_TOKENS}")
    sys.exit(main("switching", __doc__ or "", partial(measure, given.tokens)))
