"""Whether a node's model is in memory, and how long it takes until it is, as its daemon says without loading it.

Law: reads only. A daemon of several models is asked for its list, which loads none: a model that nobody uses must not
come back, nor stay, because it is looked at. What is not known is a guess of this file, never of whoever asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmaas.api.model_list import ListedModel, list_models
from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.nodes.cluster.states import NodePlace
from llmaas.policies.node_report import ModelHere, ModelTier, TransferCost

_GUESSED_LOAD_S, _GUESSED_BACK_S = 5.0, 1.0
"""Of a model that has not been loaded yet; of one whose weights have left memory: the page cache mostly has them."""
_LONGEST_S = 3600.0


@frozen
class ModelState:
    """Of the model that a node serves. ``load_s``: what loading takes if it is not ``LOADED``; ``ready_s``: until one
    that is being loaded is there; ``loading_s``: until another could begin to be loaded."""

    name: str
    tier: ModelTier
    load_s: float = 0.0
    ready_s: float = 0.0
    loading_s: float = 0.0

    @property
    def loads(self) -> Mapping[ModelTier, TransferCost]:
        return {} if self.tier is ModelTier.LOADED else {self.tier: TransferCost(self.load_s, 0.0)}

    def here(self, prefill_rate: float) -> Mapping[str, ModelHere]:
        return {self.name: ModelHere(self.tier, prefill_rate, self.ready_s)}


class ModelLook:
    """At one daemon. ``is_several``: whether it serves several models; None: not known yet."""

    def __init__(self, place: NodePlace) -> None:
        self._place = place
        self.is_several: bool | None = None

    async def look(self) -> ModelState | None:
        """Of the model that those get who name none; None of a daemon that serves one model. Raises NotServing,
        NotTrusted, MalformedFrame."""
        if self.is_several is False:
            return None
        try:
            listed = await list_models(Path(self._place.socket), self._place.daemon_uid)
        except BadRequest:
            self.is_several = False
            return None
        self.is_several = True
        return listed_state(listed)

    def forget(self) -> None:
        """Another daemon may be there now."""
        self.is_several = None


def listed_state(listed: Sequence[ListedModel]) -> ModelState | None:
    """None if no model is for those who name none.

    >>> away = ListedModel("m", "m.gguf", 10**9, "away", default=True, expected_s=2.5)
    >>> listed_state([away])
    ModelState(name='m', tier=<ModelTier.DISK: 2>, load_s=2.5, ready_s=0.0, loading_s=0.0)
    """
    model = next((each for each in listed if each.default), None)
    if model is None:
        return None
    others = [each for each in listed if each is not model and each.state == "starting"]
    loading_s = max((seconds(each.expected_s, _GUESSED_LOAD_S) for each in others), default=0.0)
    if model.state == "ready":
        return ModelState(model.name, ModelTier.LOADED, loading_s=loading_s)
    load_s = seconds(model.expected_s, _GUESSED_LOAD_S)
    if model.state == "starting":
        return ModelState(model.name, ModelTier.LOADED, ready_s=load_s, loading_s=max(load_s, loading_s))
    return ModelState(model.name, ModelTier.DISK, load_s=load_s, loading_s=loading_s)


def weights_state(name: str, weights: Mapping[str, Any]) -> ModelState:
    """By what ``stats`` of the daemon of one model says.

    >>> weights_state("m", {"parked": True, "back_s": 0.5}).load_s
    0.5
    >>> weights_state("m", {"parked": False, "back_s": 0.5}).ready_s
    0.5
    """
    back_s = weights.get("back_s")
    if weights.get("parked"):
        return ModelState(name, ModelTier.MEMORY, load_s=seconds(back_s, _GUESSED_BACK_S))
    return ModelState(name, ModelTier.LOADED, ready_s=seconds(back_s, 0.0))


def seconds(told: object, guess: float) -> float:
    """What a daemon has told, if that can be; else the guess.

    >>> seconds(2, 5.0), seconds(None, 5.0), seconds(float("nan"), 5.0), seconds(-1.0, 5.0), seconds(1e300, 5.0)
    (2.0, 5.0, 5.0, 5.0, 3600.0)
    """
    if not isinstance(told, (int, float)) or isinstance(told, bool) or not math.isfinite(told) or told < 0:
        return guess
    return min(float(told), _LONGEST_S)
