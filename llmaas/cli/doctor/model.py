"""The doctor's look at the model: its file, its KV, and whether model and budgets fit into RAM.

Law: loads the model with few cells and closes it again; everything else is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmaas.cli.doctor.finding import Finding, Level
from llmaas.cli.machine import ram
from llmaas.cli.out import human_bytes
from llmaas.config import models
from llmaas.config.settings import Config
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.codec.kernels import NUMPY
from llmaas.records import CHUNK_TOKENS, ModelInfo, Precision

_OVERHEAD = 150 << 20
"""Bytes of Python, llama.cpp's compute buffers and what is in flight, besides model, cells and pool."""


def check_model(config: Config) -> Iterator[Finding]:
    engine = LlamaEngine(models.find(config.model), n_cells=256, n_seqs=2, n_threads=config.threads)
    try:
        info = engine.info
    finally:
        engine.close()
    yield Finding(
        "model", "ok", f"{info.title}: {human_bytes(info.size_bytes)}, trained on {info.n_ctx_train} tokens of context"
    )
    yield chat_finding(info)
    yield from kv_findings(config, info)
    yield from memory_findings(config, info)


def chat_finding(info: ModelInfo) -> Finding:
    """Whether messages go through the model's own chat template."""
    if not info.chat_note:
        return Finding("chat", "ok", "messages go through the model's own chat template")
    hint = "Answers may be poor, unless the model was trained on that form. Look for another GGUF of this model."
    return Finding("chat", "warn", info.chat_note, hint)


def kv_findings(config: Config, info: ModelInfo) -> Iterator[Finding]:
    """What a token takes in cells and coded, and whether the model's contexts can be cut into chunks."""
    shape = info.geometry
    if isinstance(bits := config.bits, tuple):
        coded = Codec(shape, kernels=NUMPY).encoded_size(CHUNK_TOKENS, Precision(*bits)) // CHUNK_TOKENS
        how = "K{} V{}".format(*bits)
    else:
        coded = int(shape.n_layer * (shape.k_dim + shape.v_dim) * bits / 8)
        how = f"{bits:g} bits a value on average"
    yield Finding(
        "kv",
        "ok",
        f"{shape.n_layer} layers, K {shape.k_dim} and V {shape.v_dim} values: {human_bytes(shape.token_bytes)} a token "
        f"in cells, {human_bytes(coded)} coded at {how}",
    )
    if not info.chunkable:
        yield Finding("kv", "warn", f"contexts of this model cannot be chunked: {info.note}", "They are recomputed.")
    elif info.note:
        yield Finding("kv", "warn", info.note)
    longest = min(config.cells, info.n_ctx_train)
    yield Finding("kv", "ok", f"{config.cells} cells; the longest context is {longest} tokens")


def memory_findings(config: Config, info: ModelInfo) -> Iterator[Finding]:
    """What the daemon may take at most, against what the machine has."""
    parts = {
        "model": info.size_bytes,
        "cells": config.cells * info.geometry.token_bytes,
        "pool": config.pool_bytes,
        "overhead": _OVERHEAD,
    }
    if config.adapters:
        parts["adapters"] = config.adapter_bytes
    need = sum(parts.values())
    text = f"{human_bytes(need)} at most: " + ", ".join(f"{name} {human_bytes(n)}" for name, n in parts.items())
    found = ram()
    if found is None:
        yield Finding("memory", "warn", f"{text}; this machine does not say how much RAM it has")
        return
    text += f"; of {human_bytes(found.total)} RAM {human_bytes(found.available)} are free"
    level: Level = "fail" if need > found.total else "warn" if need > found.available else "ok"
    hint = "" if level == "ok" else "Lower --cells or --pool-bytes, or serve a smaller model."
    yield Finding("memory", level, text, hint)
