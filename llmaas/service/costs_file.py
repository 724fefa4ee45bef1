"""The file in which what the planner has learned of this machine outlives the daemon, for ``llmaas plan``.

Law: written when the service ends, whole or not at all, and never read by the service: its planner begins with guesses
each time, so that a recording holds everything that decided.

It is a JSON object: ``model``, ``weights_bytes``, and the fields of ``planner.cost_model.LearnedCosts``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any

from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.planner.cost_model import LearnedCosts
from llmaas.records import ModelInfo
from llmaas.regular_file import replace_file

log = logging.getLogger(__name__)
_FIELDS = tuple(field.name for field in dataclasses.fields(LearnedCosts))


@frozen
class MeasuredCosts:
    """What was learned with one model on one machine."""

    model: str
    weights_bytes: int
    costs: LearnedCosts


def keep(path: Path, model: ModelInfo, learned: LearnedCosts) -> None:
    """Write what was learned. What this run has not observed is taken from an earlier one of the same model."""
    known = dataclasses.asdict(learned)
    if not any(known.values()):
        return
    try:
        before = read(path)
    except BadRequest:
        before = None
    if before is not None and (before.model, before.weights_bytes) == (model.title, model.size_bytes):
        known = {name: value or getattr(before.costs, name) for name, value in known.items()}
    entry = {"model": model.title, "weights_bytes": model.size_bytes, **known}
    try:
        replace_file(path, json.dumps(entry).encode() + b"\n", 0o600)
    except OSError as error:
        log.warning("cannot keep what was learned of this machine in %s: %s", path, error.strerror)


def read(path: Path) -> MeasuredCosts:
    """Raises BadRequest if there is none, or it cannot be understood."""
    hint = "A daemon writes it when it ends, once it has answered something; or leave --measured out."
    try:
        found = json.loads(path.read_bytes())
        costs = LearnedCosts(*(_pair(found[name]) for name in _FIELDS))
        return MeasuredCosts(str(found["model"]), int(found["weights_bytes"]), costs)
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}", hint=hint) from None
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise BadRequest(f"{path} does not say what was learned: {error!r}", hint=hint) from None


def _pair(found: Any) -> tuple[float, float] | None:
    if found is None:
        return None
    a, b = map(float, found)
    if not (0 <= a < math.inf and 0 <= b < math.inf and a + b > 0):
        raise ValueError(f"seconds are 0 or more, not {found}")
    return a, b
