"""What the way to the service costs: LLM-OS' evaluation, by the Unix socket and by slots of shared memory.

* **null**: a request that does nothing, from the blocking client to a daemon in another process. The two ways alternate
  in blocks; the ratio is the median over pairs of blocks. ``contended`` is the same beside as many busy processes as
  there are CPUs: nobody can spin for free there.
* **one client**: its prompt and answer, by the socket and by a slot, against the bare loop (``bench.overhead``
  has how). LLM-OS loses 2 % to its service on a CPU (B. E. Uerun, TU Munich 2025), 10 % on a GPU.
* **through a VM** (``--vm FOLDER``, a guest that ``scripts/test-vm`` has built; ``--vm-only`` measures nothing else):
  the null request and an answer of 512 tokens from the host to a daemon in a guest, by virtio-serial and by slots over
  ivshmem, beside the same on the host. The engine computes nothing, so that the fixed cost is left. ``--accel``: kvm,
  or tcg, which emulates the guest and every instruction of the service in it.
* **clients**: 1 to 32 of them at once, both ways: tokens a second of all and of each, time to the first token, and time
  from token to token.

That no wake-up is lost, and what killed and hostile clients can do, is shown by ``python -m tests.stress.slots``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import daemon
from bench.lib.engine import Bare, engine
from bench.lib.machine import ROOT
from bench.lib.neighbour import Busy
from bench.lib.stats import sig
from bench.lib.texts import Texts, prose
from bench.lib.through_vm import WAYS, pings, through_vm
from bench.overhead import Speed, Way, alternate, bare_loop, over_socket
from bench.scaling import answers_of, figures
from llmaas.api.client import Client

CLIENTS = (1, 2, 4, 8, 16, 32)
_SLOTS = ("--slots", "64")
_BLOCK = 200
"""Requests of a block."""
_QUESTION = 24
_CELLS = 20 * 1024


def measure(options: Options, vm: Path | None = None, accel: str = "auto") -> Result:
    """``vm``: a guest, to be measured, too."""
    options.kept.expect(3 + 2 * len(CLIENTS) + (vm is not None))
    n_prompt, n_new, rounds = (192, 64, 5) if options.quick else (384, 512, 7)
    with engine(options) as thread:
        model = thread.engine.info.name
        text = prose(thread.engine, n_prompt, options.seed)
        tokens = thread.engine.tokenize(text, special=True, bos=True)
        clients = _prompts(Texts(thread.engine, 40_000, options.seed), options.quick)
    blocks = 20 if options.quick else 50
    null = {name: options.step(f"null {name}", partial(_null, options, blocks, n)) for name, n in _neighbours(options)}
    one = options.step("one client", partial(_one_client, options, text, tokens, n_new, rounds))
    rows = [
        options.step(f"{n} clients by {way}", partial(_row, options, n, way, clients[n], 16 if options.quick else 64))
        for n in CLIENTS
        for way in WAYS
    ]
    found = {"null": null, "prompt_tokens": len(tokens), "answer_tokens": n_new, "one_client": one, "clients": rows}
    bars = list(_bars(null, one))
    if vm is not None:
        border = options.step("through a VM", partial(through_vm, options, vm, accel))
        found["vm"] = border
        bars.append(_vm_bar(border))
    return Result(model, {**found, "llm_os": _published(one, rows)}, bars)


def _bars(null: dict[str, Any], one: dict[str, Any]) -> Iterator[Bar]:
    yield Bar("a request that does nothing by a slot, over the socket (p50)", null["idle"]["ratio"], 0.5, at_most=True)
    for way in WAYS:
        yield Bar(f"decode by the {way} over the bare loop", one[f"decode_{way}_over_bare"], 0.98)
    for what in ("decode", "prefill"):
        yield Bar(f"{what} by a slot over the socket", one[f"{what}_slots_over_socket"], 0.99)


def _vm_bar(found: dict[str, Any]) -> Bar:
    what = "a request that does nothing to a guest by a slot, over virtio-serial (p50)"
    return Bar(what, found["slots_over_serial"], 0.5, at_most=True)


def _published(one: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What LLM-OS tells of itself, said beside what was found here. It has no figures of many clients but those of 16
    that take turns on one context's room, with quanta of 100 tokens; here all are in the cells, and decode together."""
    told = json.loads((ROOT / "docs/results/published.json").read_text("utf-8"))["llm_os"]
    quantum = told["quantum"]
    of_16 = {which: sig(quantum[f"{which}_tps"][-1] / quantum[f"{which}_single"]) for which in ("cpu", "gpu")}
    for way in WAYS:
        lost = 1 - one[f"decode_{way}_over_bare"]
        taken = f"{lost:.1%} of the speed; of LLM-OS {told['overhead']['cpu']:.0%}, on a CPU"
        say(f"{way}: the service takes {taken}")
        rate = {row["clients"]: row["tokens_per_s"] for row in rows if row["way"] == way}
        say(f"{way}: 16 clients have {rate[16] / rate[1]:.2f} of the speed of one; of LLM-OS {of_16['cpu']}, on a CPU")
    return {"service_overhead": told["overhead"], "sixteen_clients_over_one": of_16}


# -- a request that does nothing --------------------------------------------------------------------


def _neighbours(options: Options) -> tuple[tuple[str, int], ...]:
    return ("idle", 0), ("contended", options.threads)


def _null(options: Options, blocks: int, neighbours: int) -> dict[str, Any]:
    with (
        daemon(options, f"null{neighbours}", *_SLOTS) as (socket, _),
        Client(socket, app="socket") as by_socket,
        Client(socket, app="slots", transport="slots") as by_slot,
        closing(Busy(neighbours)) as busy,
        busy.hashing(neighbours),
    ):
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        medians: dict[str, list[float]] = {way: [] for way in WAYS}
        for i in range(blocks + 1):
            for way, client in (("socket", by_socket), ("slots", by_slot))[:: 1 if i % 2 else -1]:
                times = pings(client, _BLOCK)
                if i:  # the first one warms up
                    found[way] += times
                    medians[way].append(median(times))
    row: dict[str, Any] = {
        f"{way}_us_p{p}": sig(float(np.percentile(found[way], p)) * 1e6) for way in WAYS for p in (50, 90, 99)
    }
    row["ratio"] = sig(median(a / b for a, b in zip(medians["slots"], medians["socket"], strict=True)))
    say(f"beside {neighbours} busy processes: {row}")
    return row


# -- one client -------------------------------------------------------------------------------------


def _one_client(options: Options, text: str, tokens: list[int], n_new: int, rounds: int) -> dict[str, Any]:
    with (
        Bare(options) as bare,
        daemon(options, "one", *_SLOTS) as (socket, _),
        Client(socket, app="socket") as by_socket,
        Client(socket, app="slots", transport="slots") as by_slot,
    ):
        ways: dict[str, Way] = {
            "bare": lambda: bare_loop(bare, tokens, n_new),
            "socket": lambda: over_socket(by_socket, text, n_new),
            "slots": lambda: over_socket(by_slot, text, n_new),
        }
        speeds = asyncio.run(alternate(ways, rounds))
    return {
        f"{what}_{one}_over_{other}": sig(_ratio(speeds[one], speeds[other], what))
        for one, other in (("socket", "bare"), ("slots", "bare"), ("slots", "socket"))
        for what in ("decode", "prefill")
    }


def _ratio(ones: list[Speed], others: list[Speed], what: str) -> float:
    """Median over the rounds. Prefill speed is prompt tokens over the time to the first token."""
    return float(median(getattr(one, what) / getattr(other, what) for one, other in zip(ones, others, strict=True)))


# -- many clients -----------------------------------------------------------------------------------


def _prompts(texts: Texts, quick: bool) -> dict[int, list[list[str]]]:
    """For each number of clients, the context and the questions of each."""
    sizes = (96, _QUESTION, _QUESTION) if quick else (192, _QUESTION, _QUESTION, _QUESTION)
    most = [[texts.take(size) for size in sizes] for _ in range(max(CLIENTS))]
    return {n: most[:n] for n in CLIENTS}


def _row(options: Options, n: int, way: str, prompts: list[list[str]], n_new: int) -> dict[str, Any]:
    flags = (*_SLOTS, "--cells", str(_CELLS), "--max-running", "32")
    with daemon(options, f"{way}{n}", *flags, endless=True) as (socket, _):
        answers = asyncio.run(answers_of(socket, prompts, n_new, way))
    row = {"way": way, **figures(answers, n, n_new)}
    gap = f"token to token {row['gap_ms_p50']} ms (p99 {row['gap_ms_p99']})"
    say(f"{n:2} clients by {way}: {row['tokens_per_s']} tokens/s, {row['per_client']} each, {gap}")
    return row


def measure_vm(options: Options, vm: Path, accel: str) -> Result:
    options.kept.expect(1)
    found = options.step("through a VM", partial(through_vm, options, vm, accel))
    return Result("fake", {"vm": found}, [_vm_bar(found)])


def run() -> int:
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--vm", type=Path)
    own.add_argument("--vm-only", action="store_true")
    own.add_argument("--accel", choices=["auto", "kvm", "tcg"], default="auto")
    given, sys.argv[1:] = own.parse_known_args()  # what is left are the options of all benches
    if given.vm_only and given.vm is None:
        own.error("--vm-only needs --vm FOLDER")
    do = partial(measure_vm if given.vm_only else measure, vm=given.vm and given.vm.absolute(), accel=given.accel)
    return main(Path(__file__).stem, (__doc__ or "").strip(), do)


if __name__ == "__main__":
    sys.exit(run())
