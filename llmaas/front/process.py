"""The process of one model, as the front process knows it: away, starting, ready, leaving, and away again.

Law: connections that come while it is not ready wait here, and lose nothing; each is handed on once, or answered with
why it cannot be. A process that ends by itself is started again when somebody wants it, after a pause that grows while
it ends again soon.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from llmaas.api import replies
from llmaas.api.caller import Door
from llmaas.api.handed import HandedConnection
from llmaas.api.wire import encode
from llmaas.calls import Loading
from llmaas.clock import Clock
from llmaas.errors import EngineFailed, LlmaasError, ModelEnded, by_code
from llmaas.front.channel import Channel, Message
from llmaas.front.kept import KeptConnections
from llmaas.front.restart_pause import RestartPause
from llmaas.front.started import RunningProcess, StartedProcess, start_process
from llmaas.policies.bit_price.several import BitCurve
from llmaas.weights_tier import WeightsTier

log = logging.getLogger(__name__)

_KILL_S = 45.0
"""Seconds that a process gets to end by itself: it writes what is in POOL to disk."""
_LOOK_S = 0.1
_ENDED_HINT = "Ask again: it is started anew, and what was acknowledged is on disk."
_USES = 0.3
"""Weight of the newest time between uses in their running mean."""


class ProcessState(enum.Enum):
    AWAY = "away"
    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"


@dataclass(slots=True)
class Uses:
    """When the model was used."""

    last: float
    between_s: float = 600.0
    """Mean seconds between uses, as far as is known."""

    def add(self, now: float) -> None:
        since, self.last = now - self.last, now
        if since > 1.0:
            self.between_s += _USES * (since - self.between_s)


class ModelProcess:
    """``command``: what starts it, with the number of a descriptor behind it. ``changed`` is called after each change
    of ``state`` or ``active``; ``let_go`` gets each connection that the process hands back; ``begin`` starts it."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        clock: Clock,
        changed: Callable[[], None],
        let_go: Callable[[HandedConnection], None],
        begin: Callable[[Sequence[str]], Awaitable[StartedProcess]] = start_process,
    ) -> None:
        self.name = name
        self._begin = begin
        self._command, self._clock, self._changed, self._let_go = list(command), clock, changed, let_go
        self.state = ProcessState.AWAY
        self.active = 0
        """Requests that wait or run in it."""
        self.cells: int | None = None
        """That it was started with, or has made itself; None: as many as its own settings say."""
        self.needed_cells = 0
        """That its contexts needed when it was given fewer."""
        self.tier: WeightsTier | None = None
        """Where its weights are, as it last said; None while it is not there."""
        self.pool_used = 0
        """Bytes in its POOL, as it last said."""
        self.pool_share: int | None = None
        """Bytes that it was told its POOL may hold; None: as many as its own settings say."""
        self.disk_used = 0
        """Bytes of chunks in its store, as it last said; while it is away, as was found when it had ended."""
        self.stored: Callable[[], int] = lambda: 0
        """Looks how many bytes of chunks its store holds: some are written when nothing is told any more."""
        self.disk_share: int | None = None
        """Bytes that it was told its chunks may take on disk; None: as many as its own settings say."""
        self.curve: BitCurve | None = None
        """What its chunks would do with more bits, as it last said; None while it is away."""
        self.bit_share: float | None = None
        """Bits per value that it was told to code with; None: as its own settings say."""
        self.uses = Uses(clock.now())
        self.load_s: float | None = None
        """Seconds that its last start took."""
        self.waiting: list[HandedConnection] = []
        self.apps_changed: Callable[[], None] = lambda: None
        self._process: RunningProcess | None = None
        self._channel: Channel | None = None
        self._kept: KeptConnections | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._failure: LlmaasError | None = None
        """Why it could not start; until ``_not_before``."""
        self._not_before, self._pauses = 0.0, RestartPause()
        self._began = self._left = 0.0
        self._leaves_for_good = self._is_ending = False
        """The second: it has closed everything, and only the system has not freed its memory yet."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None or self.state is ProcessState.AWAY else self._process.pid

    @property
    def in_memory(self) -> bool:
        return self.state is not ProcessState.AWAY and not self._is_ending

    @property
    def wanted(self) -> bool:
        """Whether connections wait for it, and it is not there or coming."""
        return bool(self.waiting) and self.state is ProcessState.AWAY

    def take(self, handed: HandedConnection) -> None:
        """Hand a connection to the process, as soon as it is ready. Raises why it cannot be started for now."""
        now = self._clock.now()
        if self.state is ProcessState.AWAY and self._failure is not None and now < self._not_before:
            raise type(self._failure)(self._failure.message, hint=self._failure.hint)
        self.uses.add(now)
        if self.state is ProcessState.READY:
            self._hand_on(handed)
        else:
            self.waiting.append(handed)

    def start(self, cells: int | None = None) -> None:
        """Begin to start it, if it is away; with so many cells, or more if its contexts need them. None: with all that
        its own settings say."""
        if self.state is ProcessState.AWAY:
            self.cells = cells
            self.state, self._began, self._leaves_for_good = ProcessState.STARTING, self._clock.now(), False
            self._keeper = asyncio.ensure_future(self._run())

    def retire(self, *, force: bool = False) -> None:
        """Ask it to leave memory: it does unless a request runs in it. ``force``: whatever runs."""
        if self.state is ProcessState.READY or (force and self.state is ProcessState.LEAVING):
            self.state, self._left = ProcessState.LEAVING, self._clock.now()
            self._send({"t": "retire", "force": force})
            self._changed()

    async def end(self) -> None:
        """End it, and return when it has; connections that wait are closed."""
        self._leaves_for_good = True
        for handed in self.waiting:
            handed.sock.close()
        self.waiting.clear()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
        if self._keeper is not None:
            await asyncio.wait([self._keeper], timeout=_KILL_S)
            self.kill()
            await self._keeper

    def kill(self) -> None:
        """End the process at once, if there is one. What it has acknowledged is on disk."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def kill_late(self) -> None:
        """End a process that was to leave long ago."""
        if self.state is ProcessState.LEAVING and self._clock.now() - self._left > _KILL_S:
            log.error("the process of the model %s does not end; it is killed", self.name)
            self.kill()

    async def gone(self) -> None:
        """Return when it is away, or has been."""
        if self._keeper is not None:
            await asyncio.wait([self._keeper])

    def refuse_waiting(self, error: LlmaasError) -> None:
        """Answer the connections that wait with why they are not served."""
        waiting, self.waiting = self.waiting, []
        for handed in waiting:
            refuse(handed.sock, error)

    def expected_s(self, load_s: float | None) -> float | None:
        """Seconds until it is ready, if loading takes ``load_s``; None if it does not load yet, or is late."""
        if self.state is not ProcessState.STARTING or load_s is None:
            return None
        left = load_s - (self._clock.now() - self._began)
        return left if left > 0 else None

    def tell_waiting(self, expected_s: float | None) -> None:
        """Tell those who wait how long that will take. A peer that does not read is not told."""
        data = encode(replies.loading_frame(Loading(self.name, expected_s)))
        for handed in self.waiting:
            if handed.told_of_loading:
                with contextlib.suppress(OSError):
                    handed.sock.send(data)

    def give_pool(self, nbytes: int) -> None:
        """Its POOL may hold so many bytes from now on."""
        self.pool_share = nbytes
        self._send({"t": "pool", "nbytes": nbytes})

    def give_disk(self, nbytes: int) -> None:
        """Its chunks may take so many bytes on disk from now on."""
        self.disk_share = nbytes
        self._send({"t": "disk", "nbytes": nbytes})

    def give_bits(self, bits: float) -> None:
        """Its chunks are coded with so many bits per value from now on, in the mean."""
        self.bit_share = bits
        self._send({"t": "bits", "bits": bits})

    def apps_settled(self) -> None:
        """All others have left: what it has written about apps holds for all."""
        self._send({"t": "apps_settled"})

    # -- inside

    def _send(self, message: Message, fd: int | None = None) -> None:
        if self._channel is not None:
            self._channel.send(message, fd)

    def _hand_on(self, handed: HandedConnection) -> None:
        assert self._kept is not None
        number, fd = self._kept.keep(handed)
        message = {"t": "connection", "door": handed.door.name, "hello": handed.hello, "greet": handed.greet}
        self._send({**message, "number": number}, fd)

    async def _run(self) -> None:
        while (pause := self._not_before - self._clock.now()) > 0 and not self._leaves_for_good:
            await asyncio.sleep(min(pause, _LOOK_S))
        if self._leaves_for_good:
            self.state = ProcessState.AWAY
            return
        code = -1
        try:
            self._kept = KeptConnections()
            begun = await self._begin(self._command_now())
        except OSError as error:
            self._failure = EngineFailed(f"the process of the model {self.name} cannot be started: {error}")
        else:
            self._process = begun.process
            self._channel = Channel(begun.sock, self._on_message, on_unsent=self._on_unsent)
            self._channel.send({"t": "marks"}, os.dup(self._kept.fd))
            if self._leaves_for_good:
                self._process.terminate()
            code = await self._process.wait()
        self._ended(code)

    def _command_now(self) -> list[str]:
        cells = [] if self.cells is None else [f"--cells-now={self.cells}"]
        return [*self._command[:-1], *cells, self._command[-1]]

    def _ended(self, code: int) -> None:
        if self._channel is not None:
            self._channel.read_rest()
        was, self.state, self.active, self._is_ending = self.state, ProcessState.AWAY, 0, False
        self.disk_used, self.curve, self.tier = self.stored(), None, None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        how = f"signal {-code}" if code < 0 else f"status {code}"
        self._go_on_without(ModelEnded(f"the process of the model {self.name} ended ({how})", hint=_ENDED_HINT))
        now = self._clock.now()
        if was is not ProcessState.LEAVING and not self._leaves_for_good:
            log.error("the process of the model %s ended (%s); its conversations are on disk", self.name, how)
            load_s = self.load_s if was is ProcessState.READY else None
            self._not_before = now + self._pauses.after_end(load_s, now - self._began - (load_s or 0.0))
            if load_s is not None:  # it could be started: whoever comes now waits no longer than for that
                self._failure = None
            else:
                self._failure = self._failure or EngineFailed(f"the process of the model {self.name} ended ({how})")
                self.refuse_waiting(self._failure)
        self._changed()

    def _go_on_without(self, reason: ModelEnded) -> None:
        """The process has ended. Its connections that were at rest do not notice; others end with the reason."""
        if self._kept is None:
            return
        left, self._kept = self._kept.end(), None
        if self._leaves_for_good:
            for handed in (*left.unseen, *left.at_rest, *left.in_use):
                handed.sock.close()
            return
        for handed in left.in_use:
            refuse(handed.sock, reason)
        for handed in left.at_rest:
            self._let_go(replace(handed, greet=False))
        self.waiting += left.unseen

    def _on_message(self, message: Message, fd: int | None) -> None:
        match message.get("t"):
            case "ready":
                self.state, self._failure = ProcessState.READY, None
                self.pool_used, self.pool_share, self.disk_share = 0, None, None
                if self.cells is not None and int(message["cells"]) > self.cells:
                    self.cells = self.needed_cells = int(message["cells"])
                self.load_s = self._clock.now() - self._began
                log.info("the model %s is there, after %.1f s", self.name, self.load_s)
                self._flush()
            case "state":
                self.active, self.tier = int(message["active"]), WeightsTier(message["tier"])
                self.pool_used, self.disk_used = int(message["pool"]), int(message["disk"])
                if message["used"]:
                    self.uses.last = self._clock.now()
            case "curve":
                steps = {int(bucket): int(nbytes) for bucket, nbytes in message["steps"]}
                self.curve = BitCurve(int(message["values"]), int(message["floor"]), steps)
            case "busy" if self.state is ProcessState.LEAVING:
                self.state = ProcessState.READY
                self._flush()
            case "idle" if fd is not None:
                door = Door[str(message["door"])]
                self._forget(message["number"])
                self._let_go(HandedConnection(door, socket.socket(fileno=fd), bytes(message["hello"]), greet=False))
                return
            case "gone":
                self._forget(message["number"])
                return
            case "failed":
                kind = by_code().get(str(message["code"]), LlmaasError)
                self._failure = kind(str(message["message"]), hint=str(message["hint"]))
            case "apps":
                self.apps_changed()
            case "end":
                self._is_ending = self.state is ProcessState.LEAVING
        self._changed()

    def _forget(self, number: int | None) -> None:
        if self._kept is not None:
            self._kept.forget(number)

    def _on_unsent(self, message: Message, fd: int | None) -> None:
        """The process is gone, which will be noticed soon: the next one gets the connection."""
        if fd is None:
            return
        if message["t"] != "connection" or message["number"] is not None:  # there is a copy of it
            os.close(fd)
            return
        sock, door = socket.socket(fileno=fd), Door[message["door"]]
        if self._leaves_for_good:
            sock.close()
        else:
            self.waiting.append(HandedConnection(door, sock, message["hello"], message["greet"]))

    def _flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        for handed in waiting:
            self._hand_on(handed)


def refuse(sock: socket.socket, error: LlmaasError) -> None:
    """Tell the peer why it is not served, and close."""
    try:
        sock.send(encode(replies.failed_frame(None, error)))
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    finally:
        sock.close()


def python_command(*arguments: str) -> list[str]:
    """A command that runs llmaas with these arguments."""
    return [sys.executable, "-m", "llmaas", *arguments]
