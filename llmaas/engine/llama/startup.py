"""What an engine finds out about its model at start-up, by decoding a few tokens.

Law: everything runs in sequence 0, which is empty before and afterwards. What does not show as expected is refused with
a reason, never guessed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging

import numpy as np
import numpy.typing as npt

from llmaas.engine.base import BatchItem
from llmaas.engine.llama.decoder import LlamaDecoder
from llmaas.engine.llama.learn_layout import checked_geometry, layer_order, learn_layout
from llmaas.engine.llama.lib import build
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.rope import FIRST_TOKEN, find_rope
from llmaas.engine.llama.rope_memo import RopeMemo
from llmaas.engine.llama.slabs import Slabs
from llmaas.engine.llama.state_layout import Unchunkable
from llmaas.engine.llama.suggestion import suggested_sampling
from llmaas.engine.llama.whole_states import learn_state_size
from llmaas.errors import EngineFailed, ModelUnreadable
from llmaas.frozen import frozen
from llmaas.kv_arrays import F16, F32, KvSlab, Rope
from llmaas.records import CHUNK_TOKENS, Geometry, ModelInfo

_log = logging.getLogger(__name__)
_KV_MEANING = "llama.cpp, K after RoPE, V, flash attention"
"""What stored rows mean. Part of the fingerprint: chunks of another meaning are not loaded."""
_LEARNT_FROM = 3
"""Tokens whose state shows the layout."""


@frozen
class ModelFacts:
    """``slabs`` is None if the model's state cannot be chunked; then there is no ``rope`` either."""

    info: ModelInfo
    slabs: Slabs | None
    rope: Rope | None


def examine_model(
    model: LlamaModel, decoder: LlamaDecoder, type_kv: str, spare_bytes: int, rope_memo: RopeMemo | None = None
) -> ModelFacts:
    """Learn the layout of states, check that a state comes back, find how keys are rotated. Raises EngineFailed."""
    note, geometry, slabs, state, rope = "", model.geometry(), None, None, None
    try:
        slabs, geometry = _learn_slabs(model, decoder, spare_bytes)
    except Unchunkable as reason:
        note = f"contexts cannot be chunked: {reason}"
        state = learn_state_size(decoder, _LEARNT_FROM)
    else:
        first = _check_round_trip(decoder, slabs)
    decoder.drop(0, 0)
    info = ModelInfo(
        name=model.name,
        fingerprint=_fingerprint(model, type_kv, decoder.cells.n_cells, whole=slabs is None),
        vocab=model.vocab_fingerprint(),
        former_vocab=model.former_vocab_fingerprint(),
        geometry=geometry,
        n_ctx_train=model.n_ctx_train,
        n_vocab=model.n_vocab,
        size_bytes=model.size_bytes,
        chunkable=slabs is not None,
        state=state,
        sampling=suggested_sampling(model.handle),
        note=note,
        chat_note=model.note,
        file=model.file,
        tools=model.takes_tools,
        tool_mark=model.tool_mark,
    )
    _log.info("%s: %d cells, chunkable: %s", info.title, decoder.cells.n_cells, info.chunkable)
    if not info.chunkable:
        _log.info("states of whole sequences: %s", info.state or "they do not come back")
    if slabs is not None:
        keys_of, name = functools.partial(_keys_alone, decoder, slabs, first), f"{info.fingerprint} {build()}"
        rope = find_rope(model.handle, geometry.head_dim_k, keys_of, rope_memo, name)
    return ModelFacts(info, slabs, rope)


def _fingerprint(model: LlamaModel, type_kv: str, n_cells: int, *, whole: bool) -> str:
    meaning = f"{model.weights_fingerprint()} {type_kv} {_KV_MEANING} {model.long_rope(n_cells)}"
    if whole:  # what the bytes of a whole state mean is for llama.cpp to say, and to change
        meaning += f" {build()}"
    return hashlib.blake2b(meaning.encode(), digest_size=16).hexdigest()


def _learn_slabs(model: LlamaModel, decoder: LlamaDecoder, spare_bytes: int) -> tuple[Slabs, Geometry]:
    """Slabs by what the state of a few decoded tokens shows, which stay in sequence 0. Raises Unchunkable."""
    tokens = [FIRST_TOKEN % decoder.n_vocab, *range(1, _LEARNT_FROM)]
    decoder.step([BatchItem(0, 0, tokens)], "")
    if why := model.why_not_chunkable():
        raise Unchunkable(why)
    if decoder.cells.only_window:
        raise Unchunkable(f"of layers with a window only the last {decoder.cells.window} tokens are kept")
    layout = learn_layout(decoder.cells.read_whole(0), _LEARNT_FROM)
    geometry = checked_geometry(model.geometry(), layout)
    slabs = Slabs(decoder.cells, layout, spare_bytes)
    if layout.copied:
        window = decoder.cells.window
        if window < CHUNK_TOKENS:
            raise Unchunkable(f"layers see a window of {window} tokens, less than a chunk")
        layers = layer_order(_reach(decoder, slabs, layout.sections[0].n_layer))
        slabs = Slabs(decoder.cells, dataclasses.replace(layout, layers=layers), spare_bytes)
    return slabs, geometry


def _reach(decoder: LlamaDecoder, slabs: Slabs, n_first: int) -> npt.NDArray[np.bool_]:
    """Which of the next token's rows of K depend on V of the first section's rows before it (see ``layer_order``)."""
    slab = slabs.export(0, 0, _LEARNT_FROM)
    plain = _next_keys(decoder, slabs, slab)
    changed = []
    for row in range(n_first):
        slab.v[row] *= -1
        changed.append((_next_keys(decoder, slabs, slab) != plain).any(axis=1))
        slab.v[row] *= -1
    return np.stack(changed)


def _next_keys(decoder: LlamaDecoder, slabs: Slabs, slab: KvSlab) -> F16:
    """K (n_layer, k_dim) of one more token after those of ``slab``, in sequence 0."""
    n = slab.n_tokens
    decoder.drop(0, 0)
    slabs.load(0, 0, slab)
    decoder.step([BatchItem(0, n, [n])], "")
    return slabs.export(0, n, n + 1).k[:, 0]


def _check_round_trip(decoder: LlamaDecoder, slabs: Slabs) -> F32:
    """The keys (n_layer, k_dim) of the first token. Raises EngineFailed unless sequence 0 comes back as it went out,
    ModelUnreadable if it holds no numbers."""
    slab = slabs.export(0, 0, _LEARNT_FROM)
    if not slabs.is_finite(0, 0, _LEARNT_FROM):
        raise ModelUnreadable(
            "the model computes NaN or infinity",
            hint="Its file is damaged, or it needs a larger range of numbers than f16.",
        )
    decoder.drop(0, 0)
    slabs.load(0, 0, slab)
    again = slabs.export(0, 0, _LEARNT_FROM)
    if not (np.array_equal(slab.k, again.k) and np.array_equal(slab.v, again.v)):
        raise EngineFailed("llama.cpp gave back other KV than it was given")
    decoder.drop(0, 0)
    if (found := slabs.begin_load(0, 0, _LEARNT_FROM)) is not None and len(found) == 1:
        found[0].k[:], found[0].v[:] = -slab.k, -slab.v  # negatives, as these cells may hold the rows themselves
        again = slabs.export(0, 0, _LEARNT_FROM)
        slabs.in_place = np.array_equal(again.k, -slab.k) and np.array_equal(again.v, -slab.v)
    else:
        slabs.in_place = False
    _log.info("chunks are decoded into cells: %s", slabs.in_place)
    return slab.k[:, 0].astype(np.float32)


def _keys_alone(decoder: LlamaDecoder, slabs: Slabs, first: F32, token: int, position: int) -> F32:
    """The keys (n_layer, k_dim) of a token at ``position`` with nothing before it. ``first``: those of the token that
    the layout was learnt from first, so at position 0: a step less, which of a large model is some 40 ms of a start."""
    if (token, position) == (FIRST_TOKEN, 0):
        return first
    decoder.decode_alone(token % decoder.n_vocab, position)
    keys = slabs.export(0, position, position + 1).k[:, 0].astype(np.float32)
    decoder.cells.truncate(0, 0)
    return keys
