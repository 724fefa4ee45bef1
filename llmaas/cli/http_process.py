"""The process that serves HTTP, beside a daemon that started it.

Law: it runs for as long as the daemon does; when it dies it is started again, after a pause that grows. Nothing of the
daemon waits for it, or fails with it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec

from llmaas.config.sources import LoadedConfig
from llmaas.errors import ConfigError

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0
"""Seconds after which a process counts as one that works: the next pause is short again."""
_END_S = 10.0
"""Seconds that it gets to end by itself."""


NEEDED = ("uvicorn", "starlette", "msgspec")
"""Packages of the extra ``http``."""


def missing_packages() -> list[str]:
    """Those of ``NEEDED`` that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def require_packages() -> None:
    """Raises ConfigError if HTTP cannot be served here."""
    if lacking := missing_packages():
        raise ConfigError(
            f"HTTP needs packages that are not installed: {', '.join(lacking)}",
            hint="Install llmaas with its extra 'http': pip install 'llmaas[http]', or scripts/setup in a checkout.",
        )


@asynccontextmanager
async def http_beside(found: LoadedConfig) -> AsyncIterator[HttpProcess | None]:
    """The HTTP process of a daemon with this configuration, during the block; None if HTTP is off."""
    config = found.config
    if config.http is None:
        yield None
        return
    flags = ["--socket", str(config.socket), "--http", config.http, "--log-level", config.log_level]
    file = ["--config", str(found.file)] if found.file else []
    access = ["--http-tokens", config.http_tokens, "--http-hosts", ",".join(config.http_hosts or ())]
    process = HttpProcess([*flags, *access, "--nice", str(config.nice), *file])
    process.start()
    try:
        yield process
    finally:
        await process.close()


class HttpProcess:
    """``llmaas http`` with ``flags``, from ``start`` to ``close``."""

    def __init__(self, flags: Sequence[str]) -> None:
        self._command = [sys.executable, "-m", "llmaas", "http", *flags, "--until-eof"]
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs now; None if none does."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    def start(self) -> None:
        self._keeper = asyncio.ensure_future(self._keep())

    async def close(self) -> None:
        """End it; it finishes what it works on, if that takes no more than a few seconds."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()  # it watches that
        try:
            await asyncio.wait_for(process.wait(), _END_S)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()

    async def _keep(self) -> None:
        loop, pause = asyncio.get_running_loop(), FIRST_PAUSE_S
        while True:
            began = loop.time()
            try:
                self._process = await _started(self._command)
                code = await self._process.wait()
                log.error("the HTTP process ended (%d); it is started again in %g s", code, pause)
            except OSError as error:
                log.error("the HTTP process cannot be started: %s; another try in %g s", error, pause)
            if loop.time() - began > _STEADY_S:
                pause = FIRST_PAUSE_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)


async def _started(command: Sequence[str]) -> asyncio.subprocess.Process:
    # The end of its standard input tells it that the daemon is gone, however that ended.
    return await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, start_new_session=True)
