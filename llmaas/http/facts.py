"""What an edge must know of the daemon's model: its name here, the names that apps may call it by, its defaults.

Law: pure; made of the daemon's hello.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmaas.frozen import frozen
from llmaas.http.errors import HttpError

PEOPLE = {"temperature": 0.7, "top_p": 0.95, "min_p": 0.05}
"""How an answer is drawn if neither the request nor the model's file says how, as ``llmaas chat`` does."""
ANY = ("default", "llmaas")
"""Names for whatever model is served."""


@frozen
class ServedModel:
    """The model that the daemon serves."""

    id: str
    """Its name over HTTP: the one that it is registered under, else that of its file, without the ending."""
    name: str
    """As its makers call it."""
    context_limit: int
    sampling: Mapping[str, float]
    takes_tools: bool
    """Whether its chat template has a place for tools."""
    tool_mark: str = ""
    """What the model writes before a call of a tool, by that template; "" if that is not known."""
    embeds: bool = False
    """Whether the daemon computes embeddings."""
    writes: bool = True
    """Whether it writes text; else it makes embeddings only."""
    file: str = ""
    """The name of its file, without the ending."""

    @staticmethod
    def of(hello: Mapping[str, Any]) -> ServedModel:
        """From the daemon's hello.

        >>> ServedModel.of({"model": "Mix1", "model_file": "Small.Q4.gguf"}).id
        'Small.Q4'
        """
        name, file = str(hello.get("model") or ""), str(hello.get("model_file") or "")
        sampling = {
            key: value for key, value in (hello.get("sampling") or {}).items() if isinstance(value, int | float)
        }
        return ServedModel(
            str(hello.get("served_as") or "") or file.removesuffix(".gguf") or name or "model",
            name,
            int(hello.get("context_limit") or 8192),
            {**PEOPLE, **sampling},
            bool(hello.get("tools")),
            str(hello.get("tool_mark") or ""),
            bool(hello.get("embedding_limit")),
            hello.get("writes") is not False,
            file.removesuffix(".gguf"),
        )

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.id, self.name, self.file)))

    def adapter_of(self, model: str | None) -> str | None:
        """The adapter that a request's ``model`` names behind a colon; None if it names none. Raises HttpError for
        another model.

        >>> facts = ServedModel.of({"model": "m"})
        >>> facts.adapter_of("m:terse"), facts.adapter_of("m:latest"), facts.adapter_of("default")
        ('terse', None, None)
        """
        if not model:
            raise HttpError(400, f"field 'model' is missing. This server has {self.id!r}.", param="model")
        if model in ANY or model.removesuffix(".gguf") in self._names:
            return None
        base, _, tag = model.rpartition(":")
        if base in (*self._names, *ANY):
            return None if tag == "latest" else tag
        raise HttpError(
            404,
            f"the model {model[:200]!r} is not served. This server has {self.id!r}; 'default' names it, too.",
            param="model",
            code="model_not_found",
        )
