"""What the index keeps of a chunk besides its place (``records.ChunkMeta``), as columns.

Law: pure. A value that cannot be what was written is dropped, and the rest kept: all of it can be measured again.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmaas.records import ChunkMeta, ChunkSensitivity, Precision

META = ("k_bits", "v_bits", "k_change", "v_change", "density", "weight", "measured_at")
_N_BITS = 2
_LARGEST = 3.5e38
"""Of what is measured: all of it is computed in float32."""
_LAST_TOKEN = 1 << 31


def meta_columns(meta: ChunkMeta | None) -> tuple[float | None, ...]:
    """The values of ``META``."""
    if meta is None:
        return (None,) * len(META)
    unmeasured = (None,) * len(ChunkSensitivity._fields)
    return (meta.precision.k, meta.precision.v, *(meta.sensitivity or unmeasured))


def read_meta(columns: Sequence[object]) -> tuple[ChunkMeta | None, bool]:
    """What is known, from the values of ``META``; and whether all of these are possible."""
    if all(value is None for value in columns):
        return None, True
    precision, measured = _precision(*columns[:_N_BITS]), columns[_N_BITS:]
    if precision is None:
        return None, False
    sensitivity = _sensitivity(*measured)
    return ChunkMeta(precision, sensitivity), sensitivity is not None or set(measured) == {None}


def _precision(k: object, v: object) -> Precision | None:
    try:
        return Precision(k, v) if isinstance(k, int) and isinstance(v, int) else None
    except ValueError:
        return None


def _sensitivity(k: object, v: object, density: object, weight: object, at: object) -> ChunkSensitivity | None:
    if not isinstance(at, int) or not 0 <= at < _LAST_TOKEN:
        return None
    match [float(x) for x in (k, v, density, weight) if isinstance(x, (int, float)) and 0 <= x <= _LARGEST]:
        case [k_change, v_change, mean, total]:
            return ChunkSensitivity(k_change, v_change, mean, total, at)
    return None
