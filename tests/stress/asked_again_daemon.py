"""Daemons for ``asked_again``: ended at any instant, and there again a moment later.

On the fake engine a daemon is a fork of this process, which must have no threads: it serves after 0.1 s, where a new
interpreter would need a second. The real one is ``llmaas serve``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from llmaas.api.client import Client
from llmaas.api.server import serve
from llmaas.engine.fake import FakeEngine
from llmaas.engine.thread import EngineThread
from llmaas.errors import NotServing
from llmaas.kvchunks.store.store import Store
from llmaas.records import Precision
from llmaas.service.service import Service
from tests.stress.daemon_under_test import CELLS, MASTER
from tests.support.service_house import service_settings

STEP_S = 0.001
"""How long a step of the fake engine takes."""
_PR_SET_PDEATHSIG = 1
"""prctl.h: what the kernel sends when the parent ends."""


class FakeDaemon:
    """A daemon on the fake engine. ``cut`` makes it drop its connections."""

    def __init__(self, root: Path) -> None:
        self.socket, self._root = root / "s", root
        self._pid = 0

    def start(self) -> None:
        """Return when it serves."""
        ready, tell = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os._exit(self._be_the_daemon(tell))
        os.close(tell)
        said = os.read(ready, 1)
        os.close(ready)
        assert said == b"r", "the daemon did not start"

    def cut(self) -> None:
        os.kill(self._pid, signal.SIGUSR1)

    def end(self, signum: signal.Signals) -> None:
        """Send the signal, and return when the daemon has ended as it should."""
        os.kill(self._pid, signum)
        status = os.waitpid(self._pid, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        assert code == (-signal.SIGKILL if signum is signal.SIGKILL else 0), f"the daemon ended with {code}"

    def _be_the_daemon(self, tell: int) -> int:
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            os.closerange(3, tell)  # connections of this process would stay open in the fork
            return asyncio.run(self._serve(tell))
        except BaseException:
            traceback.print_exc()
            return 1

    async def _serve(self, tell: int) -> int:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        with Store(self._root / "data", master=MASTER) as store:
            engine = EngineThread(lambda: FakeEngine(CELLS, 8, step_time=lambda n: STEP_S))
            settings = service_settings(pool_bytes=4 << 20, bits=Precision(4, 4), split="load_first")
            service = Service(engine, store, settings)
            await service.start()
            async with await serve(service, self.socket) as server:

                def cut() -> None:
                    for connection in list(server.connections):
                        connection.drop()

                loop.add_signal_handler(signal.SIGUSR1, cut)
                os.write(tell, b"r")
                await stop.wait()
            await service.wait_idle()
            problems = service.check()
            await service.stop()
            engine.close()
            problems += store.check(deep=False).problems
        print("\n".join(problems), file=sys.stderr, end="")
        return bool(problems)


class RealDaemon:
    """``llmaas serve`` with the packaged model. It has no ``cut``: the client goes instead."""

    def __init__(self, root: Path) -> None:
        self.socket, self._root = root / "s", root

    def start(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("LLMAAS_", "XDG_"))}
        flags = ["--data-dir", str(self._root / "data"), "--cells", "2048", "--threads", "1", "--log-level", "error"]
        command = [sys.executable, "-m", "llmaas", "serve", "--socket", str(self.socket), *flags]
        with (self._root / "log").open("ab") as log:
            env = environ | {"HOME": str(self._root)}
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        late = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < late:
            with contextlib.suppress(NotServing):
                Client(self.socket, app="a").close()
                return
            time.sleep(0.05)
        raise AssertionError((self._root / "log").read_text("utf-8"))

    def cut(self) -> None:
        """Nothing."""

    def end(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)
        code = self._process.wait(60)
        assert code == (-signal.SIGKILL if signum is signal.SIGKILL else 0), (self._root / "log").read_text("utf-8")
