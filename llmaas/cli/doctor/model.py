"""The doctor's look at the model: its file, its KV, and whether model and budgets fit into RAM.

Law: loads the model with few cells and closes it again; everything else is arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmaas.cli.doctor.finding import Finding, Level
from llmaas.cli.engine_choices import context_settings, placement, repack_memo
from llmaas.cli.machine import ram
from llmaas.cli.out import human_bytes
from llmaas.config import models
from llmaas.config.model_kinds import ModelKind
from llmaas.config.settings import Config
from llmaas.engine.llama.context import working_memory
from llmaas.engine.llama.devices import compute_devices
from llmaas.engine.llama.embedder import embedding_memory
from llmaas.engine.llama.embedding_engine import LlamaEmbeddingEngine
from llmaas.engine.llama.encoder import encoder_memory
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.repack import RepackChoice, choose
from llmaas.kvchunks.codec.codec import Codec
from llmaas.kvchunks.codec.kernels import NUMPY
from llmaas.records import CHUNK_TOKENS, ModelInfo, Precision, StateSize
from llmaas.slots.layout import SlotLayout

_PROGRAM = 80 << 20
"""Bytes of Python, its packages and the shared libraries: 77 MB, measured on x86-64."""
_TOKEN_BYTES = 512
"""Of a token of the vocabulary: 210 to 340 in llama.cpp and the tokenizer, 170 once an answer is constrained."""
_IN_FLIGHT, _IN_FLIGHT_CHUNKS = 24 << 20, 16
"""Bytes, and chunks in f16, that are exported, coded, read, written or measured at a time. What is bounded in bytes
(``_READ_BYTES``, ``_AHEAD_BYTES`` of the loader, ``_SAVE_BYTES`` of the planner) is one chunk at least."""

_PAD = 256
"""llama.cpp makes numbers of cells multiples of it."""
_IN_FLIGHT_STATES = 4
"""Whole states of the longest context: one that is saved, as it was exported and as a chunk, and one that is read."""


def check_model(config: Config) -> Iterator[Finding]:
    path = models.find(config.model)
    if LlamaModel(path, weights=False).kind is ModelKind.EMBEDDER:
        yield from _check_embedder(config, path)
        return
    context = working_memory(path, context_settings(config), placement(config))
    embedding = embedding_memory(path, config.embedding_tokens)
    choice = choose(path, config.repack, repack_memo(config))
    # What is not known yet counts: the next start may make the copy.
    opener = functools.partial(LlamaModel, repack=choice.copied or choice.open, placement=placement(config))
    made = functools.partial(LlamaEngine, path, open_model=opener, full_windows=config.full_windows)
    engine = made(n_cells=256, n_seqs=2, n_threads=config.threads)
    try:
        info, copied, weights = engine.info, engine.copied_bytes, engine.device_bytes
    finally:
        engine.close()
    yield Finding(
        "model", "ok", f"{info.title}: {human_bytes(info.size_bytes)}, trained on {info.n_ctx_train} tokens of context"
    )
    yield chat_finding(info)
    yield from kv_findings(config, info)
    yield repack_finding(choice)
    yield from device_findings(config, context.by_device + weights)
    parts = memory_parts(config, info, copied, context.working, embedding)
    parts["cells"] = max(0, parts["cells"] - context.cells_apart)
    yield from memory_findings(config, parts)


def device_findings(config: Config, needed: Mapping[str, int]) -> Iterator[Finding]:
    """What computes beside the CPU, and whether there is room. ``needed``: bytes by device, of those with memory of
    their own."""
    chosen = config.devices if config.gpu_layers != 0 else ()
    for device in compute_devices():
        used = chosen is None or device.name in chosen
        text = f"{device.name}: {device.description}, {human_bytes(device.free_bytes)} of memory are free"
        if not used:
            text += "; not used (devices, gpu_layers)"
        need = needed.get(device.name, 0)
        if need:
            text += f", {human_bytes(need)} are needed for weights, cells and computing"
        if need > device.free_bytes:
            yield Finding("device", "warn", text, "Lower --gpu-layers or --cells: the CPU computes the other layers.")
        else:
            yield Finding("device", "ok", text)


def _check_embedder(config: Config, path: Path) -> Iterator[Finding]:
    """A model that makes embeddings only: it has no contexts, so no cells and no POOL."""
    choice = choose(path, config.repack, repack_memo(config))
    engine = LlamaEmbeddingEngine(
        LlamaModel(path, repack=choice.copied, placement=placement(config)),
        n_threads=config.threads,
        embedding_tokens=config.embedding_tokens,
    )
    try:
        info, copied, facts = engine.info, engine.copied_bytes, engine.embedding
    finally:
        engine.close()
    text = f"{info.title}: {human_bytes(info.size_bytes)}, {info.note}; it is refused for chat"
    yield Finding("model", "ok", text)
    if facts is None:
        yield Finding(
            "embed", "warn", "and embedding_tokens is 0: this daemon does nothing", "Raise --embedding-tokens."
        )
    else:
        yield Finding("embed", "ok", f"texts of up to {facts.limit} tokens, {facts.width} values a vector")
    yield from memory_findings(
        config,
        {
            "model": info.size_bytes,
            **({"a second copy of weights (repack)": copied} if copied else {}),
            "embeddings": encoder_memory(path, config.embedding_tokens),
            "vocabulary": info.n_vocab * _TOKEN_BYTES,
            "program": _PROGRAM,
        },
    )


def repack_finding(choice: RepackChoice) -> Finding:
    """Whether the daemon makes a second copy of weights, and why."""
    return Finding("repack", "ok", f"{'a' if choice.copied else 'no'} second copy of weights: {choice.reason}")


def chat_finding(info: ModelInfo) -> Finding:
    """Whether messages go through the model's own chat template."""
    if not info.chat_note:
        return Finding("chat", "ok", "messages go through the model's own chat template")
    hint = "Answers may be poor, unless the model was trained on that form. Look for another GGUF of this model."
    return Finding("chat", "warn", info.chat_note, hint)


def kv_findings(config: Config, info: ModelInfo) -> Iterator[Finding]:
    """How the model's contexts are kept, and what they take."""
    longest = min(config.cells, info.n_ctx_train)
    if info.state is not None:
        yield Finding(
            "kv", "ok", f"contexts are checkpointed: {_parts_of(info.state)} at the end of a call ({info.note})"
        )
        if (need := info.state.of(longest)) > config.pool_bytes:
            text = f"the pool has no room for the state of {longest} tokens, {human_bytes(need)}"
            yield Finding("kv", "warn", text, "Raise --pool-bytes, or lower --cells: such contexts are recomputed.")
    elif not info.chunkable:
        yield Finding("kv", "warn", f"contexts of this model cannot be chunked: {info.note}", "They are recomputed.")
    else:
        yield from _chunk_findings(config, info)
    yield Finding("kv", "ok", f"{config.cells} cells; the longest context is {longest} tokens")


def _chunk_findings(config: Config, info: ModelInfo) -> Iterator[Finding]:
    """What a token takes in cells and coded."""
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
        f"in cells, {human_bytes(coded)} coded at {how}; contexts are chunked",
    )
    if info.note:
        yield Finding("kv", "warn", info.note)


def memory_parts(config: Config, info: ModelInfo, copied: int, working: int, embedding: int = 0) -> dict[str, int]:
    """Bytes that the daemon may take at most, by what takes them. ``copied``: the second copy of weights;
    ``working``: llama.cpp's buffers for computing; ``embedding``: those for embeddings, while these are in use.
    """
    return {
        "model": info.size_bytes,
        **({"a second copy of weights (repack)": copied} if copied else {}),
        "cells": _cell_bytes(config, info),
        "pool": config.pool_bytes,
        "computing": working,
        **({"embeddings": embedding} if embedding else {}),
        "vocabulary": info.n_vocab * _TOKEN_BYTES,
        "in flight": _IN_FLIGHT + _in_flight(config, info),
        "program": _PROGRAM,
        **({"adapters": config.adapter_bytes} if config.adapters else {}),
        **({"slots": config.slots * SlotLayout(config.slot_bytes // 2).nbytes} if config.slots else {}),
    }


def _parts_of(state: StateSize) -> str:
    """What a state takes, in words."""
    parts = [human_bytes(state.fixed)]
    if state.token:
        parts.append(f"{human_bytes(state.token)} for each token")
    if state.window_token:
        parts.append(f"{human_bytes(state.window_token)} for each of the last {state.window}")
    return " and ".join(parts)


def _cell_bytes(config: Config, info: ModelInfo) -> int:
    """Of all cells. Where only windows are kept, there is one for each sequence, and room for a step."""
    state, n_window = info.state, config.cells
    if state is None:
        return config.cells * info.geometry.token_bytes
    if not config.full_windows:
        n_ubatch = context_settings(config).n_ubatch
        n_window = min(n_window, -(-(state.window * (config.sequences + 1) + n_ubatch) // _PAD) * _PAD)
    return config.cells * state.token + n_window * state.window_token


def _in_flight(config: Config, info: ModelInfo) -> int:
    """Bytes that are being exported, coded, read, written or measured, beside ``_IN_FLIGHT``."""
    if info.state is None:
        return _IN_FLIGHT_CHUNKS * CHUNK_TOKENS * info.geometry.token_bytes
    return _IN_FLIGHT_STATES * info.state.of(min(config.cells, info.n_ctx_train))


def memory_findings(config: Config, parts: dict[str, int]) -> Iterator[Finding]:
    """What the daemon may take at most, against what the machine has."""
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
