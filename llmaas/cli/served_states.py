"""Where the models are that a daemon serves which serves several, for commands that show it.

Law: it loads none of them, and a daemon that cannot be asked has none.
"""

from __future__ import annotations

import asyncio
import math

from llmaas.api.model_list import ListedModel, list_models
from llmaas.cli.options import socket_of
from llmaas.config.sources import LoadedConfig
from llmaas.errors import LlmaasError


def served_models(found: LoadedConfig) -> list[ListedModel]:
    """The models of the daemon at the configured socket; none if it serves one, or none runs."""
    try:
        return asyncio.run(list_models(socket_of(found), found.config.daemon_uid))
    except LlmaasError:
        return []


def state_text(model: ListedModel) -> str:
    """Where the model is, and how long loading it takes if it has to be.

    >>> state_text(ListedModel("m", "m.gguf", 1, "away", expected_s=2.2)), state_text(ListedModel("m", "f", 1, "ready"))
    ('away, 3 s to load', 'ready')
    """
    if model.state == "ready" or model.expected_s is None:
        return model.state
    return f"{model.state}, {max(1, math.ceil(model.expected_s))} s to load"


def tier_text(model: ListedModel) -> str:
    """The name of where its weights are, and a space; "" of a daemon that does not tell."""
    return "" if model.tier is None else f"{model.tier.value} "
