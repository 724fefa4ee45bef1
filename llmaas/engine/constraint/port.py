"""The port of a constraint: what an engine's sampler asks about each token.

Law: a token that was not allowed leaves the constraint as it was.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from llmaas.errors import BadRequest, LlmaasError

Mask = npt.NDArray[np.bool_]
Found = TypeVar("Found")


class TooComplex(BadRequest):
    """The constraint cannot be followed any further; the answer is not complete, and can only be given up."""


class Constraint(Protocol):
    """What an answer must keep to, and where the answer stands in it. One thread at a time.

    ``masks_are_cheap``: whether ``allowed`` takes less than drawing a few tokens more.
    """

    @property
    def masks_are_cheap(self) -> bool: ...

    def accept(self, token: int) -> bool:
        """Go on by a token if that is allowed; whether it was. An end token is if the answer is complete.

        Raises TooComplex.
        """

    def allowed(self) -> Generator[None, None, Mask]:
        """Returns the tokens (n_vocab) that the answer may go on with, end tokens if it may end here. At least one.

        ``accept`` takes each of them or raises TooComplex. Raises that, too, also if there is none. Yields where it can
        be left, and taken up again before the next ``accept``; of a mask that is cheap, nowhere.
        """

    @property
    def worked(self) -> int:
        """Steps, of about 0.7 us each, that the last ``accept`` took, or ``allowed`` since it yielded last."""


class ReadyConstraint(Protocol):
    """A constraint that is made ready. ``n_bytes``: about the memory that it takes."""

    @property
    def n_bytes(self) -> int: ...

    def begin(self) -> Constraint:
        """The constraint of an answer that begins."""


def brought_to(constraint: Constraint, answer: Sequence[int]) -> LlmaasError | None:
    """Have a constraint that begins accept the tokens that its answer has; why it does not."""
    try:
        if all(constraint.accept(token) for token in answer):
            return None
    except TooComplex as error:
        return error
    return BadRequest("what there is of the answer does not keep to its grammar or schema")


def whole(parts: Generator[None, None, Found]) -> Found:
    """What a generator returns."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            found: Found = end.value
            return found
