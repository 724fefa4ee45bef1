"""Finds how a model rotates its keys by position (RoPE), by looking at keys.

Law: a table of angles is given only after a check: it must rotate keys at a position that it was not made from back to
what they are at position 0. The table is the same at every start.

A token alone in a sequence attends only to itself, so its hidden states are the same at every position, and its key
at position p is R(p) k, with k its key at position 0 (arXiv 2104.09864, eq. 16). Beyond that formula, models have
sliding-window layers with a base of their own, layers without RoPE, and the stretched frequencies of Llama 3 and YaRN.
None of them needs a case of its own here, since each layer's angles are measured first and only then compared with the
formulas that may hold.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llmaas.engine.llama.lib import C, metadata
from llmaas.engine.llama.rope_memo import RopeMemo
from llmaas.frozen import frozen
from llmaas.kv_arrays import F32, Rope

_F64 = npt.NDArray[np.float64]
_C128 = npt.NDArray[np.complex128]
_FIT = (0, 1, 8, 64, 512)
"""Positions that angles are measured at. Each is near enough to the one before it that the angle found there tells how
many whole rotations lie in between.
"""
_FRESH = 100
"""The position that the table is checked at."""
_POSITIONS = (*_FIT, _FRESH)
_TOKENS = FIRST_TOKEN, _ = 11111, 22222
"""Any tokens will do. One is enough; two reduce noise."""

_ANGLE_NOISE = 3e-3
"""Radians that rounding (keys to f16, angles to float32) puts between two keys: 2 x 2^-11, three times for safety."""
_TINY = 1e-6
"""A channel of this size or less has no direction that f16 could show."""
_GRID = 2.0**16
"""Angles that no formula explains are rounded to 1 / this. The error over a chunk is half a thousandth of a radian."""


@frozen
class RopeHints:
    """What the metadata says of RoPE."""

    halves: bool
    """Which channels are a pair; see ``Rope``."""
    n_rot: int
    """Channels of a head that are rotated, from the first on."""
    bases: tuple[float, ...]
    """Bases that layers may have."""
    scale: float = 1.0
    """Factor of the angles in some or all layers."""

    def formulas(self) -> list[_F64]:
        """The angles (n_pairs) that each base gives, and zeros, for layers without RoPE."""
        exponents = -2.0 * np.arange(self.n_rot // 2) / self.n_rot
        scales = {self.scale, 1.0}  # Gemma's windowed layers stay unscaled
        found = [scale * base**exponents for base in self.bases for scale in sorted(scales)]
        return [*found, np.zeros(self.n_rot // 2)]


def find_rope(
    model: object, head_dim: int, keys_of: Callable[[int, int], F32], memo: RopeMemo | None = None, name: str = ""
) -> Rope | None:
    """The table of a ``llama_model *``, or None if its keys are not rotated as its metadata says.

    ``keys_of(token, position)`` returns the keys (n_layer, k_dim) of a token alone in a sequence. It must accept any
    token id, also one beyond the vocabulary. ``memo`` keeps what is found, under the ``name`` of model and llama.cpp.
    """
    hints = read_hints(model, head_dim)
    if hints is None:
        return None
    known = memo.find(name) if memo is not None else None
    if known is not None and (rope := checked(keys_of, head_dim, hints, known)) is not None:
        return rope
    found = fit(keys_of, head_dim, hints)
    if memo is not None and found is not None:
        memo.keep(name, found.angles)
    return found


def checked(keys_of: Callable[[int, int], F32], head_dim: int, hints: RopeHints, angles: F32) -> Rope | None:
    """The table ``angles``, which was found before, if it explains keys at the fresh position; two tokens are enough to
    see that. None if it does not, or cannot be of this model."""
    keys = np.array([[keys_of(_TOKENS[0], position) for position in (0, _FRESH)]], np.float64)
    if hints.n_rot % 2 or not 0 < hints.n_rot <= head_dim or angles.shape != (keys.shape[2], hints.n_rot // 2):
        return None
    keys = keys.reshape(*keys.shape[:3], -1, head_dim)
    explains = _explains(angles.astype(np.float64), keys, _pairs(keys, hints), hints)
    return Rope(angles, hints.halves) if explains else None


def read_hints(model: object, head_dim: int) -> RopeHints | None:
    """The hints in a model's metadata; None if it has no RoPE of one position per token."""
    kind = int(C.llama_model_rope_type(model))
    if kind not in (C.LLAMA_ROPE_TYPE_NORM, C.LLAMA_ROPE_TYPE_NEOX):
        return None
    arch = metadata(model, "general.architecture") or ""

    def value(key: str) -> str | None:
        return metadata(model, f"{arch}.rope.{key}")

    bases = [float(text) for text in map(value, ("freq_base", "freq_base_swa")) if text]
    return RopeHints(
        halves=kind == C.LLAMA_ROPE_TYPE_NEOX,
        n_rot=int(value("dimension_count") or head_dim),
        bases=tuple(dict.fromkeys([*bases, 10000.0])),  # llama.cpp's default, and Gemma's windows'
        scale=float(C.llama_model_rope_freq_scale_train(model)),
    )


def fit(keys_of: Callable[[int, int], F32], head_dim: int, hints: RopeHints) -> Rope | None:
    """The table that keys show, or None if they are not rotated as ``hints`` says. ``keys_of``: see ``find_rope``."""
    if hints.n_rot % 2 or not 0 < hints.n_rot <= head_dim:
        return None
    keys = np.array([[keys_of(token, position) for position in _POSITIONS] for token in _TOKENS], np.float64)
    keys = keys.reshape(*keys.shape[:3], -1, head_dim)  # token, position, layer, head, channel
    pairs = _pairs(keys, hints)
    angles = _tables(_measure(pairs), _size(pairs[:, 0]), hints.formulas())
    if not _explains(angles.astype(np.float64), keys, pairs, hints):
        return None
    return Rope(angles, hints.halves)


def _pairs(keys: _F64, hints: RopeHints) -> _C128:
    """The rotary pairs of ``keys`` as complex numbers: rotating one is multiplying it by exp(i angle)."""
    rotated, n_pairs = keys[..., : hints.n_rot], hints.n_rot // 2
    if hints.halves:
        return np.asarray(rotated[..., :n_pairs] + 1j * rotated[..., n_pairs:])
    return np.asarray(rotated[..., 0::2] + 1j * rotated[..., 1::2])


def _size(pairs: _C128) -> _F64:
    """Root mean square over tokens (axis 0) and heads (axis 2): (n_layer, n_pairs)."""
    return np.asarray(np.sqrt((np.abs(pairs) ** 2).mean(axis=(0, 2))))


def _measure(pairs: _C128) -> _F64:
    """Radians per position (n_layer, n_pairs): least squares over tokens and heads, unwrapped from near to far."""
    angles = np.zeros(())
    for at, position in enumerate(_FIT):
        if position:
            rotation = (pairs[:, at] * pairs[:, 0].conj()).sum(axis=(0, 2))
            rest = np.angle(rotation * np.exp(-1j * angles * position))
            angles = angles + rest / position
    return np.asarray(angles)


def _tables(measured: _F64, size: _F64, known: list[_F64]) -> F32:
    """For each layer the first table within its measurement's noise: a formula, an earlier layer's, or else its own."""
    allowed = (_ANGLE_NOISE + _TINY / np.maximum(size, 1e-30)) / _FIT[-1]
    chosen: list[_F64] = []
    for angles, margin in zip(measured, allowed, strict=True):
        fitting = (table for table in known if (np.abs(angles - table) <= margin).all())
        table = next(fitting, None)
        if table is None:
            table = np.round(angles * _GRID) / _GRID
            known.append(table)
        chosen.append(table)
    return np.array(chosen, np.float32)


def _explains(angles: _F64, keys: _F64, pairs: _C128, hints: RopeHints) -> bool:
    """True if the keys at the fresh position, rotated back, are those at position 0, but for noise."""
    back = pairs[:, -1] * np.exp(-1j * angles[:, None] * _FRESH)
    off = _size(back - pairs[:, 0]) <= _ANGLE_NOISE * _size(pairs[:, 0]) + _TINY
    still = (keys[:, -1] == keys[:, 0])[..., hints.n_rot :]
    return bool(off.all() and still.all())
