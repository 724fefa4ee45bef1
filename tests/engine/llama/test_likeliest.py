"""The likeliest token as _steps.c finds it: what numpy, and llama.cpp's greedy sampler, select."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

from llmaas.kv_arrays import F32
from tests.support.c_steps import STEPS


@pytest.fixture(scope="module")
def likeliest() -> Callable[[F32], int]:
    if STEPS is None:
        pytest.skip("the C part was not built")
    find = STEPS.steps_likeliest
    find.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    return lambda row: int(find(row.ctypes.data, len(row)))


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 513, 49_152])
def test_the_first_of_the_highest_is_found(likeliest: Callable[[F32], int], n: int) -> None:
    random = np.random.default_rng(n)
    for _ in range(20):
        row = random.normal(size=n).astype(np.float32)
        assert likeliest(row) == row.argmax()
        row = random.integers(-2, 3, n).astype(np.float32)  # many that are equal
        assert likeliest(row) == row.argmax()
    assert likeliest(np.full(n, -np.inf, np.float32)) == 0
    for at in {0, n // 2, n - 1}:
        row = np.full(n, -np.inf, np.float32)
        row[at] = -1e30
        assert likeliest(row) == at
