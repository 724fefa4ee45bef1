"""The ``llama_context`` of an engine: its settings, and how it is made.

Law: settings that llama.cpp would end the process over are refused first. "Context" is llama.cpp's word here, for cells
and compute buffers; it has nothing to do with the contexts of apps.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from llmaas.engine.llama.cells import extra_sequences
from llmaas.engine.llama.devices import EVERYWHERE, Placement, devices_apart
from llmaas.engine.llama.lib import C, collect_errors, collect_lines
from llmaas.engine.llama.memory_use import cell_bytes, device_bytes, output_bytes, working_bytes
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.query_probe import QueryProbe
from llmaas.errors import MachineError, ModelUnreadable
from llmaas.frozen import frozen

KvType = Literal["f16", "q8_0", "q5_1", "q4_0"]
"""What cells may hold. The service has f16: quantised cells would need slabs of another kind, so they can be neither
exported nor loaded. Benches compare with them."""
KV_TYPES: dict[KvType, int] = {
    "f16": C.GGML_TYPE_F16,
    "q8_0": C.GGML_TYPE_Q8_0,
    "q5_1": C.GGML_TYPE_Q5_1,
    "q4_0": C.GGML_TYPE_Q4_0,
}
_MOST_EXTRA = 2
"""Sequences that ``SequenceCells`` adds at most."""


@frozen
class ContextSettings:
    """Sizes of a ``llama_context``. Raises ValueError for what llama.cpp cannot do.

    ``n_batch``: most tokens of a step. ``n_ubatch``: most tokens that llama.cpp computes at a time.
    """

    n_cells: int
    n_seqs: int
    n_threads: int
    n_batch: int
    n_ubatch: int
    type_kv: KvType
    full_windows: bool = True
    """Whether layers with a sliding window keep all positions. If not, no sequence of such a model can be cut."""

    def __post_init__(self) -> None:
        most = int(C.llama_max_parallel_sequences()) - _MOST_EXTRA
        if not 1 <= self.n_seqs <= most:
            raise ValueError(f"n_seqs must be in 1 .. {most}, not {self.n_seqs}")
        if self.type_kv not in KV_TYPES:
            raise ValueError(f"type_kv must be one of {', '.join(KV_TYPES)}, not {self.type_kv}")
        if self.n_cells < 1 or self.n_threads < 1 or not 1 <= self.n_ubatch <= self.n_batch:
            raise ValueError(
                f"out of range: n_cells={self.n_cells} n_threads={self.n_threads} batch={self.n_batch}/{self.n_ubatch}"
            )


def new_context(model: LlamaModel, settings: ContextSettings, probe: QueryProbe) -> Any:
    """A ``llama_context *`` of the model, with the probe installed.

    Raises ModelUnreadable for models that do not generate, MachineError if there is no memory for the cells.
    """
    if C.llama_model_has_encoder(model.handle) or not C.llama_model_has_decoder(model.handle):
        raise ModelUnreadable(f"{model.path} is not a model that generates text (it has an encoder)")
    params = _params(settings, settings.n_seqs + extra_sequences(model.handle, full_windows=settings.full_windows))
    probe.install(params)
    with collect_errors() as errors, collect_lines() as lines:
        context = C.llama_init_from_model(model.handle, params)
    if not context:
        raise MachineError(
            f"llama.cpp cannot set up {params.n_ctx} cells: {'; '.join(errors) or 'it gives no reason'}",
            hint="Give the daemon fewer cells or free memory.",
        )
    release_logits(context, min(params.n_outputs_max * model.n_vocab * 4, output_bytes(lines)))
    return context


def release_logits(context: Any, nbytes: int) -> None:
    """Give the memory of the logits back to the system until they are written (Linux).

    llama.cpp fills them with zeros at the start, for as many sequences as there may be: 6 MB with SmolLM2, 36 MB with
    Gemma's vocabulary. Only the rows of calls that run together are ever written. What was given back reads as zeros,
    since it is private memory without a file (madvise(2), MADV_DONTNEED).
    """
    address = ctypes.cast(C.llama_get_logits(context), ctypes.c_void_p).value
    if sys.platform != "linux" or address is None:
        return
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + nbytes - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


@frozen
class ContextMemory:
    """Bytes that a context takes at most. Of devices those count that have memory of their own."""

    working: int
    """RAM for computing: beside weights and cells."""
    cells_apart: int
    """Cells that are on devices, not in RAM."""
    by_device: Counter[str]
    """All on each device but weights."""


def working_memory(path: Path, settings: ContextSettings, placement: Placement = EVERYWHERE) -> ContextMemory:
    """What such a context takes. It takes about none itself.

    Raises what ``new_context`` raises.
    """
    with collect_lines() as of_model:
        model = LlamaModel(path, weights=False, placement=placement)
    heads = int(C.llama_model_n_head(model.handle))
    probe = QueryProbe(model.geometry(), heads, n_batch=settings.n_batch, n_seqs=settings.n_seqs)
    with collect_lines() as lines:
        context = new_context(model, settings, probe)
    C.llama_free(context)
    elsewhere = devices_apart()
    cells = cell_bytes(of_model + lines, elsewhere)
    return ContextMemory(working_bytes(lines, elsewhere), cells.total(), cells + device_bytes(lines, elsewhere))


def _params(settings: ContextSettings, n_seqs: int) -> Any:
    params = C.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = settings.n_cells, settings.n_batch, settings.n_ubatch
    params.n_threads = params.n_threads_batch = settings.n_threads
    params.type_k = params.type_v = KV_TYPES[settings.type_kv]
    params.n_seq_max = n_seqs
    params.n_outputs_max = n_seqs  # llama.cpp asserts this; without it, it makes room for logits of every token
    params.kv_unified = True  # all sequences share the cells, so a copy is metadata only
    params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_ENABLED  # V is stored by rows, not transposed
    params.swa_full = settings.full_windows  # windowed layers keep all positions: any of them can go out and in
    params.no_perf = True
    return params
