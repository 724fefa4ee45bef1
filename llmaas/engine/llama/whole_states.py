"""Whole states: whether those of a model come back bit by bit, and how large they are.

Law: the engine's thread only. Everything runs in sequence 0; what does not show as expected is not relied on.
"""

from __future__ import annotations

import logging

import numpy as np

from llmaas.engine.base import BatchItem
from llmaas.engine.llama.decoder import LlamaDecoder
from llmaas.engine.llama.learn_layout import learn_layout
from llmaas.engine.llama.state_blob import CELL
from llmaas.engine.llama.state_layout import Unchunkable
from llmaas.errors import EngineFailed
from llmaas.kv_arrays import Bytes
from llmaas.records import StateSize

_log = logging.getLogger(__name__)


def learn_state_size(decoder: LlamaDecoder, n_tokens: int) -> StateSize | None:
    """The size of states, by those of ``n_tokens`` tokens, which sequence 0 has, and of one and two more.

    None if their size does not grow by the same for each token, or if a state does not come back as it went out.
    """
    cells, sizes = decoder.cells, list[int]()
    for n in range(n_tokens, n_tokens + 3):
        if n > n_tokens:
            decoder.step([BatchItem(0, n - 1, [n - 1])], "")
        state = cells.read_whole(0)
        sizes.append(state.size)
    token = sizes[1] - sizes[0]
    if sizes[2] - sizes[1] != token or token < 0:
        _log.warning("states of %d tokens and more have %s bytes: they are not kept", n_tokens, sizes)
        return None
    decoder.drop(0, 0)
    try:
        cells.write_whole(0, n_tokens + 2, state)
    except EngineFailed as error:
        _log.warning("%s: states are not kept", error)
        return None
    if not np.array_equal(cells.read_whole(0), state):
        _log.warning("llama.cpp gave back another state than it was given: states are not kept")
        return None
    fixed, in_window = sizes[0] - n_tokens * token, _window_row(decoder, state, n_tokens + 2)
    return StateSize(fixed, token - in_window, window=decoder.cells.window if in_window else 0, window_token=in_window)


def _window_row(decoder: LlamaDecoder, state: Bytes, n_tokens: int) -> int:
    """Bytes of a token in layers with a window, which a state holds of the last tokens only; 0 if it has none."""
    if not decoder.cells.window:
        return 0
    try:
        sections = learn_layout(state, n_tokens).sections
    except Unchunkable:
        return 0
    if len(sections) < 2:
        return 0
    return int(CELL.itemsize) + sections[1].n_layer * (sections[1].k_row + sections[1].v_row)
