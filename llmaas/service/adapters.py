"""The LoRA adapters that calls may name: registered at start or while the service runs.

Law: a name means one file with one content; KV is named by the content (``root``), so that KV of other weights is never
taken for it. Every adapter is loaded once before it is registered, to see that it can be.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path

from llmaas.engine.adapter_cache import AdapterCache, AdapterFile, examine
from llmaas.engine.thread import EngineThread
from llmaas.errors import AdapterUnreadable, BadRequest, UnknownAdapter
from llmaas.fair_thread import FairThread
from llmaas.kvchunks.keys import namespace
from llmaas.kvchunks.store.store import AdapterRow, Store
from llmaas.records import SHORT_NAME, AdapterInfo, AppId

log = logging.getLogger(__name__)


class AdapterRegistry:
    """The adapters by name. ``budget``: bytes of those that are loaded. For one event loop."""

    def __init__(self, thread: EngineThread, store: Store, store_thread: FairThread, budget: int) -> None:
        self.cache = AdapterCache(thread.engine, budget)
        self._engine_thread, self._store, self._store_thread = thread, store, store_thread
        self._files_thread = FairThread("adapter-files")
        """Reads files that operators name, whose disk or network may not answer."""
        self._model = thread.engine.info.fingerprint
        self._files: dict[str, AdapterFile] = {}

    async def start(self, configured: Sequence[tuple[str, Path]]) -> None:
        """Register the adapters of the store and those that the settings name. Raises what ``add`` does for the latter.

        An adapter of the store whose file is gone, or too large by now, stays registered: its calls fail until the file
        is back.
        """
        for row in await self._store_thread.run("", self._store.adapters.all):
            file = AdapterFile(row.name, Path(row.path), row.fingerprint)
            try:
                file = await self._files_thread.run("", examine, row.name, file.path, self.cache.budget)
            except (AdapterUnreadable, BadRequest) as error:
                log.warning("adapter %s: %s", row.name, error.message)
            if file.fingerprint != row.fingerprint:
                log.warning("adapter %s: its file has changed; what was computed with it is not used", row.name)
            self._files[row.name] = file
        for name, path in configured:
            self._files[name] = await self._tried(name, path)

    def close(self) -> None:
        """Read no more files, and do not wait for the one that is being read."""
        self._files_thread.close(finish=False, wait=False)

    # -- what calls need

    def file(self, name: str, user: str | None = None) -> AdapterFile | None:
        """The file of an adapter; None for "", the bare model. Raises UnknownAdapter.

        ``user``: the name of the context that uses the adapter already, for the message.
        """
        if name and name not in self._files:
            if user is None:
                raise UnknownAdapter(f"there is no adapter {reprlib.repr(name)}")
            raise UnknownAdapter(
                f"context {user!r} uses the adapter {name!r}, which is not registered any more",
                hint="Register it again ('llmaas adapter add'), or name another one in the call, \"\" for none.",
            )
        return self._files.get(name)

    def root(self, app: AppId, name: str) -> bytes:
        """The root of the chunk keys of an app's contexts with this adapter; a name that is not registered has one of
        its own."""
        if name and name not in self._files:
            return namespace(app, self._model, f"unknown {name}")
        return namespace(app, self._model, self._files[name].fingerprint if name else "")

    # -- what operators do

    def infos(self, *, paths: bool) -> list[AdapterInfo]:
        """All adapters, by name; ``paths``: with the paths of their files, which are not for every app."""
        loaded = self.cache.loaded
        return [
            AdapterInfo(name, _shown(f.path) if paths else "", f.fingerprint, f.size_bytes, f.fingerprint in loaded)
            for name, f in sorted(self._files.items())
        ]

    async def add(self, name: str, path: str) -> AdapterInfo:
        """Register a file under a name, in place of the file that had the name. It stays registered after a restart.

        Raises BadRequest (the name, a relative path, larger than the budget), AdapterUnreadable, AdapterMismatch,
        Busy, StoreFailed, DiskFull; then everything is as it was.
        """
        if not re.fullmatch(SHORT_NAME, name):
            raise BadRequest(f"an adapter's name has 1 to 64 characters of A-Z a-z 0-9 . _ -, not {reprlib.repr(name)}")
        if not Path(path).is_absolute():
            raise BadRequest(f"an absolute path is wanted, not {reprlib.repr(path)}")
        file = await self._tried(name, Path(path))
        await self._store_thread.run("", self._store.adapters.save, AdapterRow(name, path, file.fingerprint))
        before = self._files.get(name)
        self._files[name] = file
        self._evict(before)
        return next(info for info in self.infos(paths=True) if info.name == name)

    async def remove(self, name: str) -> None:
        """Forget an adapter. Calls that run with it go on to their end. Contexts that use it are kept, and refuse calls
        until they are given another one. Raises UnknownAdapter."""
        before = self.file(name)
        await self._store_thread.run("", self._store.adapters.delete, name)
        self._files.pop(name, None)
        self._evict(before)

    def stats(self) -> dict[str, object]:
        loaded = self.cache.loaded
        return {
            "registered": len(self._files),
            "loaded": len(loaded),
            "loads": self.cache.loads,
            "bytes": {"used": sum(loaded.values()), "budget": self.cache.budget},
        }

    # -- inside

    async def _tried(self, name: str, path: Path) -> AdapterFile:
        """Read the file, and load it once. Raises what ``add`` does."""
        file = await self._files_thread.run("", examine, name, path, self.cache.budget)
        await asyncio.wrap_future(self._engine_thread.submit(self._try_out, file))
        return file

    def _try_out(self, file: AdapterFile) -> None:
        self.cache.acquire(file)
        self.cache.release(file.fingerprint)

    def _evict(self, file: AdapterFile | None) -> None:
        """Unload a file that no name means any more, when no call uses it."""
        if file is not None and all(f.fingerprint != file.fingerprint for f in self._files.values()):
            self._engine_thread.submit(self.cache.evict_idle, file.fingerprint)


def _shown(path: Path) -> str:
    """``path`` as replies can hold it: names of files may be other bytes than UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")
