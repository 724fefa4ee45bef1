"""Constraints over bytes: each byte is a token, as in the fake engine."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.engine.constraint.compiler import Constraints
from llmaas.engine.constraint.guidance import is_installed
from llmaas.engine.constraint.port import Constraint, whole
from llmaas.engine.constraint.vocabulary import Vocabulary
from llmaas.engine.fake import text

needs_guidance = pytest.mark.skipif(not is_installed(), reason="llguidance is not installed")
WITH = {"guidance": True, "machine": False}


def over_bytes(kind: str) -> Constraints:
    return Constraints(Vocabulary(text.N_VOCAB, text.piece, text.is_end), guidance=WITH[kind])


@pytest.fixture(scope="session", params=[pytest.param("guidance", marks=needs_guidance), "machine"])
def constraints(request: pytest.FixtureRequest) -> Constraints:
    """What is tested with llguidance and without it."""
    return over_bytes(request.param)


@pytest.fixture(scope="session")
def without_guidance() -> Constraints:
    return over_bytes("machine")


@pytest.fixture(scope="session")
def takes() -> Callable[[Constraints, Sampling, str], bool]:
    """Whether an answer may be that text, and end there."""

    def takes(constraints: Constraints, sampling: Sampling, answer: str) -> bool:
        constraint = constraints.begin(sampling)
        assert constraint is not None
        return all(constraint.accept(byte) for byte in answer.encode()) and constraint.accept(text.IM_END)

    return takes


@pytest.fixture(scope="session")
def wander() -> Callable[[Constraint, int], str | None]:
    """An answer of any of the tokens that are allowed; None if it has not ended after 250."""

    def wander(constraint: Constraint, seed: int) -> str | None:
        rng, said, closing = random.Random(seed), bytearray(), b'"}],'
        for n in range(250):
            tokens = [int(token) for token in np.flatnonzero(whole(constraint.allowed()))]
            going_on = [token for token in tokens if not text.is_end(token)]
            if not going_on or (len(going_on) < len(tokens) and rng.random() < 0.5):
                return said.decode()
            plain = [token for token in going_on if token in closing or chr(token).isalnum()]
            last = [token for token in going_on if token in closing] if n > 60 else []
            token = rng.choice(last or (plain if rng.random() < 0.7 else []) or going_on)
            assert constraint.accept(token)
            said.append(token)
        return None

    return wander
