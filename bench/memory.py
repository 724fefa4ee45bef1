"""How much memory a daemon takes at most, against model + cells + pool + 150 MB.

A real daemon has a small POOL. One client gives it contexts that need several times its cells and POOL together, then
uses all of them several times, so that prefill, decode, coding, writing, reading and switching all happen. The bound
counts the model at the size of its tensors (the file is mapped), the cells at f16, the POOL at its budget. The daemon's
peak is the kernel's own figure (VmHWM), which misses nothing, as samples would.
"""

from __future__ import annotations

import sys
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import daemon
from bench.lib.engine import CELLS, engine
from bench.lib.probes import memory
from bench.lib.stats import sig
from bench.lib.texts import prose
from llmaas.api.client import Client

_ALLOWANCE = 150_000_000
"""Bytes beyond model, cells and POOL that the daemon may take."""


def measure(options: Options) -> Result:
    n_contexts, n_tokens, rounds = (6, 1024, 2) if options.quick else (12, 2048, 4)
    with engine(options) as thread:  # only for its tokenizer, and the model's size
        info = thread.engine.info
        texts = [prose(thread.engine, n_tokens, options.seed + i) for i in range(n_contexts)]
    cells, pool = (CELLS // 4, 16 << 20) if options.quick else (CELLS // 2, 48 << 20)
    flags = ("--pool-bytes", str(pool), "--cells", str(cells))
    with daemon(options, "daemon", *flags) as (socket, pid), Client(socket, app="bench") as client:
        idle = memory(pid)
        names = [client.create(name=f"context {i}").id for i in range(n_contexts)]
        for name, text in zip(names, texts, strict=True):
            client.append(name, prompt=text)
            say(f"resident after an append: {memory(pid)['resident'] / 1e6:.0f} MB")
        for _ in range(rounds):
            for name in names:
                answer = client.generate(name, prompt="\n\nIn short:", max_tokens=8)
                say(f"{answer.done.switch}, resident {memory(pid)['resident'] / 1e6:.0f} MB")
        found, counts = memory(pid), client.stats()["counts"]
    parts = {"model": info.size_bytes, "cells": cells * info.geometry.token_bytes, "pool": pool}
    bound = sum(parts.values()) + _ALLOWANCE
    figures: dict[str, Any] = {
        "idle_bytes": idle,
        "bytes": found,
        "parts_bytes": parts,
        "beyond_parts_mb": sig((found["peak"] - sum(parts.values())) / 1e6),
        "bound_bytes": bound,
        "needed_over_cells_and_pool": sig(
            n_contexts * n_tokens * info.geometry.token_bytes / (parts["cells"] + parts["pool"])
        ),
        "counts": counts,
    }
    what = "peak resident memory beyond model + cells + pool, in MB"
    return Result(info.name, figures, [Bar(what, figures["beyond_parts_mb"], _ALLOWANCE / 1e6, at_most=True)])


if __name__ == "__main__":
    sys.exit(main("memory", __doc__ or "", measure))
