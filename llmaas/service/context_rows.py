"""The rows of new contexts, and what a row is in memory.

Law: values only; nothing is stored here.
"""

from __future__ import annotations

from llmaas.errors import BadRequest, ContextExists
from llmaas.kvchunks.store.store import ContextRow
from llmaas.records import AppId, ContextId
from llmaas.service.directory import looks_like_id, new_id
from llmaas.service.live_context import ANONYMOUS, LiveContext, anonymous_name, root_app
from llmaas.service.parts import ServiceParts


class ContextRows:
    """Makes rows and empty contexts. For one event loop."""

    def __init__(self, parts: ServiceParts) -> None:
        self._engine, self._clock = parts.engine, parts.clock
        self._adapters, self._directory = parts.adapters, parts.directory

    def live(self, row: ContextRow) -> LiveContext:
        """A context of this row, which has no tokens yet."""
        root = self._adapters.root(root_app(row), row.adapter)
        usable = row.vocab == self._engine.info.vocab
        return LiveContext(row, root, usable=usable, adapter=row.adapter, last_used=row.last_used)

    def named(self, app: AppId, name: str | None, adapter: str, ttl: float | None = None) -> ContextRow:
        """The row of a new context; without a name it gets one. Raises BadRequest, ContextExists."""
        if name is None:
            name = self._directory.fresh_name(app)
        if looks_like_id(name):
            raise BadRequest(f"{name!r} looks like the id of a context", hint="Choose a name of another form.")
        if name.startswith(ANONYMOUS):
            raise BadRequest(f"{name!r} begins with {ANONYMOUS}", hint="Such names are the daemon's; choose another.")
        if self._directory.has_name(app, name):
            raise ContextExists(f"app {app} has a context named {name!r} already")
        return self._row(new_id(), app, name, adapter, ttl)

    def anonymous(self, app: AppId, adapter: str) -> ContextRow:
        """The row of a new context without a name that an app chose."""
        context = new_id()
        return self._row(context, app, anonymous_name(context), adapter)

    def _row(self, context: ContextId, app: AppId, name: str, adapter: str, ttl: float | None = None) -> ContextRow:
        now, model = self._clock.wall(), self._engine.info
        return ContextRow(context, app, name, model.name, model.vocab, now, now, 0, adapter, ttl)
