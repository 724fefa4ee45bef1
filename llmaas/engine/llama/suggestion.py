"""How the makers of a model suggest that its answers are drawn: keys ``general.sampling.*`` of its GGUF file.

Law: a suggestion, never a rule: nothing here changes how a call is answered that says how it wants to be.
"""

from __future__ import annotations

import logging
from typing import Any

from llmaas.calls import Sampling
from llmaas.calls.sampling import MAX_PENALTY_TOKENS
from llmaas.engine.llama.lib import metadata

_log = logging.getLogger(__name__)

KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
    "penalty_last_n": "general.sampling.penalty_last_n",
}
"""Field of ``Sampling`` -> key, as ``llama_model_meta_key_str`` names it (llama.h). Left out are the order of the
samplers, XTC and Mirostat, which llmaas does not have."""
_WHOLE = ("top_k", "penalty_last_n")


def suggested_sampling(model: Any) -> dict[str, float]:
    """The fields of ``Sampling`` that the file of ``model`` (a ``llama_model *``) suggests; empty if it says nothing.

    A value that is no number, or that no call may ask for, is left out with a warning.
    """
    found: dict[str, float] = {}
    for name, key in KEYS.items():
        text = metadata(model, key)
        if text is None:
            continue
        try:
            found[name] = _value(name, text)
            Sampling(**{name: found[name]})  # type: ignore[arg-type]
        except (ValueError, OverflowError) as error:
            found.pop(name, None)
            _log.warning("the model's file says %s = %.40s, which is not used: %s", key, text, error)
    return found


def _value(name: str, text: str) -> float:
    """For llama.cpp a negative ``top_k`` is off, and a negative ``penalty_last_n`` all of the context."""
    if name not in _WHOLE:
        return round(float(text), 6)  # float32 values such as 0.699999988
    value = int(text)
    if value < 0:
        value = 0 if name == "top_k" else MAX_PENALTY_TOKENS
    return min(value, MAX_PENALTY_TOKENS) if name == "penalty_last_n" else value
