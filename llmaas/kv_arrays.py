"""Values that hold arrays of numpy: the KV of tokens, queries, and how a model rotates keys.

Law: values only, apart from ``records``, so that clients import no numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmaas.frozen import frozen

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True, eq=False)
class KvSlab:
    """The f16 KV of ``n_tokens`` consecutive tokens, all layers.

    ``k`` has the shape (n_layer, n_tokens, k_dim), ``v`` (n_layer, n_tokens, v_dim). Both may be strided views of a
    larger buffer, contiguous along the last axis only; ``owner`` keeps that buffer alive.
    """

    k: F16
    v: F16
    owner: Any = None

    @property
    def n_tokens(self) -> int:
        return int(self.k.shape[1])


@frozen(eq=False)
class Rope:
    """How a model rotates the keys of a token by its position (RoPE, arXiv 2104.09864, eq. 15).

    ``angles`` (n_layer, n_pairs) float32 is in radians per position. Pair i of a head is its channels (2i, 2i+1), or
    with ``halves`` (i, i + n_pairs). Channels from 2 n_pairs on are not rotated.
    """

    angles: F32
    halves: bool


@frozen(eq=False)
class Queries:
    """The queries of some tokens of one sequence, after RoPE.

    ``positions`` (n) int32 is ascending; ``values`` (n, n_layer, n_head, head_dim_k) float16.
    """

    positions: npt.NDArray[np.int32]
    values: F16
