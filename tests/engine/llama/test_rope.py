"""How keys are rotated, found by looking at them: keys made by hand, with f16 noise as llama.cpp stores them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from llmaas.engine.llama.rope import RopeHints, fit
from llmaas.kv_arrays import F32

N_LAYER, N_HEAD, HEAD_DIM = 4, 3, 16
Angles = npt.NDArray[np.float64]


def formula(base: float, n_rot: int = HEAD_DIM) -> Angles:
    return np.asarray(base ** (-2.0 * np.arange(n_rot // 2) / n_rot))


def model(layers: list[Angles], *, halves: bool, seed: int = 0, spoil: float = 0.0) -> Callable[[int, int], F32]:
    """Keys of a model whose layers rotate by these angles. ``spoil``: how much position changes them in another way."""
    n = len(layers[0])
    first, second = (slice(n), slice(n, 2 * n)) if halves else (slice(0, 2 * n, 2), slice(1, 2 * n, 2))

    def keys_of(token: int, position: int) -> F32:
        keys = np.random.default_rng([seed, token]).normal(size=(len(layers), N_HEAD, HEAD_DIM))
        rotated = keys * (1 + spoil * position)
        for layer, angles in enumerate(layers):
            x, y = keys[layer][:, first], keys[layer][:, second]
            c, s = np.cos(position * angles), np.sin(position * angles)
            rotated[layer][:, first], rotated[layer][:, second] = x * c - y * s, x * s + y * c
        return rotated.reshape(len(layers), -1).astype(np.float16).astype(np.float32)

    return keys_of


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("n_rot", [HEAD_DIM, HEAD_DIM // 2])
def test_layers_that_keep_a_formula_get_exactly_its_angles(halves: bool, n_rot: int) -> None:
    wide, narrow, none = formula(1e6, n_rot), formula(1e4, n_rot), np.zeros(n_rot // 2)
    hints = RopeHints(halves, n_rot, bases=(1e6, 1e4))
    for seed in range(5):
        rope = fit(model([wide, narrow, none, wide], halves=halves, seed=seed), HEAD_DIM, hints)
        assert rope is not None and rope.halves == halves
        assert rope.angles.dtype == np.float32
        assert np.array_equal(rope.angles, np.array([wide, narrow, none, wide], np.float32))


def test_scaled_positions_are_known_beside_plain_ones() -> None:
    hints = RopeHints(True, HEAD_DIM, bases=(1e6, 1e4), scale=0.125)
    rope = fit(model([formula(1e6) / 8, formula(1e4)], halves=True), HEAD_DIM, hints)
    assert rope is not None
    assert np.array_equal(rope.angles, np.array([formula(1e6) / 8, formula(1e4)], np.float32))


def test_stretched_frequencies_are_measured_and_the_same_for_every_layer_and_start() -> None:
    stretched = formula(1e5)
    stretched[4:] /= 8  # Llama 3 does so with its long waves
    hints = RopeHints(False, HEAD_DIM, bases=(1e5, 1e4))
    ropes = [fit(model([stretched] * N_LAYER, halves=False, seed=seed), HEAD_DIM, hints) for seed in range(5)]
    first = ropes[0]
    assert first is not None
    assert np.abs(first.angles - stretched).max() <= 2.0**-16
    assert all(rope is not None and np.array_equal(rope.angles, first.angles) for rope in ropes)
    assert (first.angles == first.angles[0]).all()


def test_keys_that_are_rotated_in_another_way_give_no_table() -> None:
    layers, hints = [formula(1e4)] * N_LAYER, RopeHints(True, HEAD_DIM, bases=(1e4,))
    assert fit(model(layers, halves=True), HEAD_DIM, hints) is not None
    assert fit(model(layers, halves=False), HEAD_DIM, hints) is None, "other channels are paired"
    assert (
        fit(model([formula(1e4, 8)] * N_LAYER, halves=True, spoil=1e-3), HEAD_DIM, RopeHints(True, 8, (1e4,))) is None
    )
    assert fit(model(layers, halves=True), HEAD_DIM, RopeHints(True, 8, bases=(1e4,))) is None, (
        "more channels are rotated than the hints say"
    )
    assert fit(model(layers, halves=True), HEAD_DIM, RopeHints(True, 32, bases=(1e4,))) is None, "wider than a head"


def test_a_pair_without_size_is_no_hindrance() -> None:
    whole = model([formula(1e4)] * N_LAYER, halves=True)

    def keys_of(token: int, position: int) -> F32:
        keys = whole(token, position).reshape(N_LAYER, N_HEAD, HEAD_DIM)
        keys[..., [3, 3 + HEAD_DIM // 2]] = 0
        return keys.reshape(N_LAYER, -1)

    rope = fit(keys_of, HEAD_DIM, RopeHints(True, HEAD_DIM, bases=(1e4,)))
    assert rope is not None
    assert np.array_equal(rope.angles[0], formula(1e4).astype(np.float32))
