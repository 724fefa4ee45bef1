"""The models behind the server, and the connections to each: one model, or several of which a request names one.

Law: there are connections to models only that the daemon has listed, so that names in requests take nothing. No model
is loaded by being listed.
"""

from __future__ import annotations

from pathlib import Path

from llmaas.api.model_list import ListedModel, list_models
from llmaas.errors import CallerError
from llmaas.http.connections import Connections
from llmaas.http.errors import HttpError
from llmaas.http.facts import ANY

_LOAD_S = 120.0
"""Seconds that a request waits for a model that has to be loaded."""


class ServedModels:
    """Those of the daemon at ``socket``, which is asked at the first request whether it serves several."""

    def __init__(self, socket: Path, daemon_uid: int | None = None) -> None:
        self._socket, self._daemon_uid = socket, daemon_uid
        self._several: bool | None = None
        self.default = Connections(socket, daemon_uid)
        self._of: dict[str, Connections] = {}

    async def several(self) -> bool:
        """Whether the daemon serves several models, each by a name. Raises LlmaasError if no daemon answers."""
        if self._several is None:
            try:
                self._several = bool(await self.listed())
            except CallerError:
                self._several = False
        return self._several

    async def of(self, model: str | None) -> Connections:
        """The connections for a request that names ``model``. Raises HttpError for one that is not served, and
        LlmaasError if no daemon answers."""
        if not await self.several():
            return self.default
        name = (await self.find(model)).name
        if name not in self._of:
            self._of[name] = Connections(self._socket, self._daemon_uid, model=name, connect_s=_LOAD_S)
        return self._of[name]

    async def listed(self) -> list[ListedModel]:
        """All models, the default one first. Raises LlmaasError."""
        found = await list_models(self._socket, self._daemon_uid)
        return sorted(found, key=lambda each: not each.default)

    async def find(self, model: str | None) -> ListedModel:
        """The model that a request names, perhaps with an adapter behind a colon. Raises HttpError, LlmaasError."""
        there = await self.listed()
        wanted = (model or "").partition(":")[0].removesuffix(".gguf")
        for each in there:
            if wanted in (each.name, each.file.removesuffix(".gguf")) or (each.default and wanted in ("", *ANY)):
                return each
        names = ", ".join(each.name for each in there)
        raise HttpError(
            404,
            f"the model {(model or '')[:200]!r} is not served. This server has {names}.",
            param="model",
            code="model_not_found",
        )

    async def close(self) -> None:
        """Close all connections; what runs on them fails."""
        for connections in (self.default, *self._of.values()):
            await connections.close()
