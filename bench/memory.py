"""How much memory a daemon takes at most, against what ``llmaas doctor`` says, and model + cells + pool + 150 MB.

A real daemon has a small POOL. One client gives it contexts that need several times its cells and POOL together, then
uses all of them several times, so that prefill, decode, coding, writing, reading and switching all happen, and one
answer by a JSON schema. Once at the default bits, once without loss: then the POOL holds fewer contexts, and chunks on
disk are four times as large. The daemon makes the second copy of weights that llama.cpp can make. The bound of 150 MB
counts the model at the size of its tensors (the file is mapped), the cells at f16, the POOL at its budget, embeddings
at what doctor says of them; it is that of models with a small vocabulary and without such a copy. The daemon's peak is
the kernel's own figure (VmHWM), which misses nothing, as samples would.

``--model`` may be given several times.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import daemon
from bench.lib.engine import CELLS, engine
from bench.lib.probes import memory
from bench.lib.stats import sig
from bench.lib.texts import prose
from llmaas.api.client import Client
from llmaas.calls import Sampling
from llmaas.cli.doctor.model import memory_parts
from llmaas.cli.engine_choices import context_settings
from llmaas.config.sources import load
from llmaas.engine.llama.context import working_memory
from llmaas.engine.llama.embedder import embedding_memory
from llmaas.engine.llama.model import LlamaModel

_ALLOWANCE = 150_000_000
"""Bytes beyond model, cells and POOL that the daemon may take."""
_SMALL_VOCABULARY = 65536
"""Tokens."""
_BITS = ("4.0", "16/16")
_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def measure(options: Options) -> Result:
    figures: dict[str, Any] = {}
    bars: list[Bar] = []
    for each in options.each():
        figures[each.model.stem], found = each.step("all", partial(_measured, each))
        bars += (Bar(**row) for row in found)
    return Result(", ".join(figures), figures, bars)


def _measured(options: Options) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    figures, bars = _measure_model(options)
    return figures, [asdict(bar) for bar in bars]


def _measure_model(options: Options) -> tuple[dict[str, Any], list[Bar]]:
    n_contexts, n_tokens, rounds = (6, 1024, 2) if options.quick else (12, 2048, 4)
    cells, pool = (CELLS // 4, 16 << 20) if options.quick else (CELLS // 2, 48 << 20)
    with engine(options, 256) as thread:  # only for its tokenizer, and the model's size
        info = thread.engine.info
        texts = [prose(thread.engine, n_tokens, options.seed + i) for i in range(n_contexts)]
    copied = LlamaModel(options.model).copied_bytes
    token_bytes = info.geometry.token_bytes
    needed = n_contexts * n_tokens * token_bytes / (cells * token_bytes + pool)
    figures: dict[str, Any] = {"needed_over_cells_and_pool": sig(needed)}
    bars = []
    for bits in _BITS:
        flags = {"cells": str(cells), "pool_bytes": str(pool), "bits": bits, "repack": "on"}
        config = load({**flags, "model": str(options.model)}, dict(os.environ)).config
        working = working_memory(options.model, context_settings(config)).working
        embedding = embedding_memory(options.model, config.embedding_tokens)
        parts = memory_parts(config, info, copied, working, embedding)
        found = _used(options, flags, texts, rounds)
        peak = found["bytes"]["peak"]
        beyond = (peak - sum(parts[name] for name in ("model", "cells", "pool", "embeddings"))) / 1e6
        figures[bits] = {**found, "parts_bytes": parts, "beyond_parts_mb": sig(beyond)}
        what = f"{options.model.stem} at {bits} bits: peak memory"
        bars.append(Bar(f"{what} over what doctor says at most", peak / sum(parts.values()), 1, at_most=True))
        if not copied and info.n_vocab <= _SMALL_VOCABULARY:
            bars.append(Bar(f"{what} beyond model + cells + pool, in MB", beyond, _ALLOWANCE / 1e6, at_most=True))
    return figures, bars


def _used(options: Options, flags: dict[str, str], texts: list[str], rounds: int) -> dict[str, Any]:
    """What a daemon takes that has these contexts, each used several times."""
    arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
    folder = "daemon-" + flags["bits"].replace("/", "-")
    with daemon(options, folder, *arguments) as (socket, pid), Client(socket, app="bench") as client:
        idle = memory(pid)
        ids = [client.create(name=f"context {i}").id for i in range(len(texts))]
        for context, text in zip(ids, texts, strict=True):
            client.append(context, prompt=text)
            say(f"resident after an append: {memory(pid)['resident'] / 1e6:.0f} MB")
        for _ in range(rounds):
            for context in ids:
                answer = client.generate(context, prompt="\n\nIn short:", max_tokens=8)
                say(f"{answer.done.switch}, resident {memory(pid)['resident'] / 1e6:.0f} MB")
        embedded = client.embed([text[:2000] for text in texts])
        say(f"embedded: {sum(embedded.n_tokens)} tokens, resident {memory(pid)['resident'] / 1e6:.0f} MB")
        sampling = Sampling(json_schema=json.dumps(_SCHEMA))
        answer = client.generate(ids[-1], prompt="\n\nAs JSON:", max_tokens=16, sampling=sampling)
        say(f"constrained: {answer.done.n_generated} tokens, resident {memory(pid)['resident'] / 1e6:.0f} MB")
        return {"idle_bytes": idle, "bytes": memory(pid), "counts": client.stats()["counts"]}


if __name__ == "__main__":
    sys.exit(main("memory", __doc__ or "", measure))
