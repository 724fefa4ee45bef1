"""The front process: accepts every connection, reads the first frame of it, and hands it to the process of its model.

Law: it loads no model and does none of their work, so that nothing of a model can take it down; what it waits for holds
up no other connection. A model leaves memory only when no request runs in it; its conversations, and the connections of
those who use it, stay.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmaas.api.acceptor import SEND_BUFFER, ConnectedAcceptor
from llmaas.api.caller import Door
from llmaas.api.daemon_address import admin_socket
from llmaas.api.handed import HandedConnection
from llmaas.api.hello import Hello, read_hello
from llmaas.api.limits import Limits
from llmaas.api.model_list import OP, ListedModel, list_frame
from llmaas.api.socket_file import SocketFile
from llmaas.api.wire import MAX_REQUEST_VALUES, encode, read_body
from llmaas.clock import Clock, RealClock
from llmaas.errors import Busy, LlmaasError, ShuttingDown, UnknownModel
from llmaas.front.bit_sharing import BitSharing
from llmaas.front.disk_sharing import DiskSharing
from llmaas.front.first_frame import first_frame
from llmaas.front.model import FrontModel
from llmaas.front.parked import ParkedConnections
from llmaas.front.pool_sharing import PoolSharing
from llmaas.front.process import ModelProcess, ProcessState, python_command, refuse
from llmaas.front.started import StartedProcess, start_process
from llmaas.front.starter import Starter
from llmaas.policies.model_cells import cells_that_fit
from llmaas.policies.model_room import ModelInMemory, models_to_leave
from llmaas.records import NO_QUOTA

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""How often it is looked whether a model has not been used for long, or there is room by now."""
_GUESSED_LOAD_S = 5.0
_WAIT_S = 110.0
"""Seconds that a connection waits for room at most; clients wait 120."""


class Front:
    """Serves ``models``, of which the first one that ``default`` names is for those who name none. ``budget``: bytes
    that they may take together; None: no bound. ``pool_bytes``: what their POOLs may take of it; None: as much as each
    of them may. ``disk_bytes``: what their chunks may take on disk together. ``bits``: per value of their chunks, in
    the mean of all. ``keep_alive``: seconds without use after which one leaves."""

    def __init__(
        self,
        socket_path: Path,
        models: Sequence[FrontModel],
        default: str,
        *,
        budget: int | None,
        pool_bytes: int | None = None,
        disk_bytes: int | None = None,
        bits: float | None = None,
        keep_alive: float | None = None,
        limits: Limits | None = None,
        memory_of: Callable[[FrontModel, int], int] = lambda model, pid: model.nbytes,
        clock: Clock | None = None,
        starter: Sequence[str] | None = None,
    ) -> None:
        """``starter``: what starts the process that makes those of models; None: each is started by its command."""
        self._starter = Starter(starter)
        self._models = {model.name: model for model in models}
        self._default, self._budget, self._keep_alive = default, budget, keep_alive
        self._limits, self._memory_of, self._clock = limits or Limits(), memory_of, clock or RealClock()
        self._pool, self._disk, self._bits = None, None, None
        if bits is not None:
            self._bits = BitSharing(bits, [model.name for model in models if model.shares_bits])
        if disk_bytes is not None:
            self._disk = DiskSharing(disk_bytes, {model.name: model.disk_bytes for model in models})
        if pool_bytes is not None:  # what all POOLs may take is set aside, and counted with no model
            self._pool = PoolSharing(pool_bytes, {model.name: model.pool_bytes for model in models})
            self._budget = None if budget is None else max(0, budget - pool_bytes)
            bare = [replace(model, nbytes=max(0, model.nbytes - model.pool_bytes)) for model in models]
            self._models = {model.name: model for model in bare}
        self._nbytes = {model.name: model.nbytes for model in self._models.values()}
        """What each takes with all of its cells, as was last seen."""
        self._parked = ParkedConnections(self._resume)
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._greeting: set[socket.socket] = set()
        self._since: dict[str, float] = {}
        """Since when connections wait for room for a model."""
        self.processes: Mapping[str, ModelProcess] = {model.name: self._process_of(model) for model in models}
        self._files = _sockets(socket_path)

    def _process_of(self, model: FrontModel) -> ModelProcess:
        made = ModelProcess(model.name, model.command, self._clock, self._serve_waiting, self._parked.add, self._begin)
        made.apps_changed = lambda: self._spawn(self._settle_apps(made))
        if self._disk is not None:
            made.stored = model.stored
            made.disk_used = model.stored()
        return made

    async def _begin(self, command: Sequence[str]) -> StartedProcess:
        """Start a model's process, as a copy of one that is there if that can be. Raises OSError."""
        arguments = command[len(python_command("serve")) : -1]
        return await self._starter.copy(arguments) or await start_process(command)

    def start(self) -> None:
        """Accept connections. Pinned models are loaded at once."""
        self._acceptors = [
            ConnectedAcceptor(file.sock, lambda sock, door=door: self._spawn(self._greet(sock, door)))  # type: ignore[misc]
            for door, file in zip((Door.APPS, Door.ADMIN), self._files, strict=True)
        ]
        for acceptor in self._acceptors:
            acceptor.start()
        for model in self._models.values():
            if model.pinned:
                self._start(model, self._cells_for(model, self._room(self._there())))
        self._spawn(self._look_around())

    async def close(self) -> None:
        """End all processes, each of which tells its clients so. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        for file in self._files:
            file.remove()
        for acceptor in self._acceptors:
            acceptor.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._parked.close()
        await asyncio.gather(self._starter.close(), *(process.end() for process in self.processes.values()))
        for file in self._files:
            file.release()

    def listed(self) -> list[ListedModel]:
        """All models, and where they are."""
        return [
            ListedModel(
                model.name,
                model.file,
                model.size_bytes,
                self.processes[model.name].state.value,
                model.name == self._default,
                model.pinned,
                None if self.processes[model.name].state is ProcessState.READY else self._load_s(model),
                self.processes[model.name].tier or model.tier(),
            )
            for model in self._models.values()
        ]

    # -- connections

    async def _greet(self, sock: socket.socket, door: Door) -> None:
        if len(self._greeting) >= self._limits.waiting_connections:
            refuse(sock, Busy("too many connections have not said hello yet"))
            return
        self._greeting.add(sock)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            body = await first_frame(sock, self._limits.hello_s)
            frame = read_body(body, MAX_REQUEST_VALUES)
            if frame.get("op") == OP:
                sock.send(encode(list_frame(self.listed())))
                sock.close()
                return
            hello = read_hello(frame)
            self._route(hello, HandedConnection(door, sock, body, greet=True))
        except LlmaasError as error:
            refuse(sock, error)
        except (OSError, asyncio.CancelledError):
            sock.close()
        finally:
            self._greeting.discard(sock)

    def _route(self, hello: Hello, handed: HandedConnection) -> None:
        model = self._find(hello.model or "")
        process = self.processes[model.name]
        if self._closing:
            raise ShuttingDown("the daemon is shutting down")
        if len(process.waiting) >= self._limits.max_connections:
            raise Busy(f"too many connections wait for the model {model.name}")
        process.take(replace(handed, told_of_loading=bool(hello.told_of_loading)))
        self._serve_waiting()
        self._tell_waiting(model)

    def _resume(self, handed: HandedConnection) -> None:
        """The client of a connection that was handed back has sent something."""
        try:
            self._route(read_hello(read_body(handed.hello)), handed)
        except LlmaasError as error:
            refuse(handed.sock, error)

    def _tell_waiting(self, model: FrontModel) -> None:
        process = self.processes[model.name]
        if process.waiting:
            process.tell_waiting(process.expected_s(self._load_s(model)))

    def _find(self, name: str) -> FrontModel:
        wanted = name or self._default
        for model in self._models.values():
            if wanted in (model.name, *model.aliases):
                return model
        raise UnknownModel(f"there is no model {wanted[:80]!r}; there are: {', '.join(self._models)}")

    # -- room

    def _serve_waiting(self) -> None:
        """Something has changed: start what is wanted, if there is room, or let others make some."""
        if self._closing:
            return
        now = self._clock.now()
        for sharing in (self._pool, self._disk, self._bits):
            if sharing is not None:
                sharing.settle(self.processes, now)
        wanted = [name for name, process in self.processes.items() if process.wanted]
        for name in list(self._since):
            if name not in wanted:
                del self._since[name]
        for name in wanted:
            self._since.setdefault(name, now)
        for name in sorted(wanted, key=self._since.__getitem__):
            if not self._make_room(self._models[name]):
                return  # others that came later must not take the room that becomes free for this one

    def _make_room(self, model: FrontModel) -> bool:
        """Start the model if there is room; else ask others to leave. False if it must wait."""
        there = self._there()
        room = self._room(there)
        cells = self._cells_for(model, room)
        if there and cells is None:
            missing = self._need(model, self._least(model)) - room
            leaving = sum(
                self._taken(each) for each in there if self.processes[each.name].state is ProcessState.LEAVING
            )
            names = models_to_leave(missing - leaving, [self._candidate(each) for each in there])
            if names is None and not leaving:
                names = self._all_idle(there)
            for name in names or ():
                log.info("the model %s leaves memory for %s", name, model.name)
                self.processes[name].retire()
            return False
        self._start(model, cells)
        return True

    def _start(self, model: FrontModel, cells: int | None) -> None:
        """Start it with so many cells; None: with the fewest, since there is no room."""
        cells = cells or self._least(model)
        self.processes[model.name].start(None if cells == model.cells else cells)

    def _there(self) -> list[FrontModel]:
        return [each for each in self._models.values() if self.processes[each.name].in_memory]

    def _room(self, there: Sequence[FrontModel]) -> int:
        """Bytes that are free for one more model beside those that are ``there``."""
        return NO_QUOTA if self._budget is None else self._budget - sum(map(self._measured, there))

    def _cells_for(self, model: FrontModel, room: int) -> int | None:
        """The cells that it would be started with where there is so much room; None if it does not fit."""
        return cells_that_fit(
            room,
            bare=self._need(model, 0),
            cell_bytes=model.cell_bytes,
            least=self._least(model),
            most=model.cells,
        )

    def _least(self, model: FrontModel) -> int:
        """Cells that it needs: by its settings, or as its contexts needed more when it was loaded last."""
        return max(model.least_cells, self.processes[model.name].needed_cells)

    def _need(self, model: FrontModel, cells: int) -> int:
        """Bytes that it takes with so many cells."""
        return self._nbytes[model.name] - (model.cells - cells) * model.cell_bytes

    def _taken(self, model: FrontModel) -> int:
        """Bytes that it takes with the cells that it has."""
        cells = self.processes[model.name].cells
        return self._need(model, model.cells if cells is None else cells)

    def _all_idle(self, there: Sequence[FrontModel]) -> list[str] | None:
        """A model that is too large for the room of all others: they leave, and it is tried."""
        candidates = [self._candidate(each) for each in there]
        return None if any(each.stays for each in candidates) else [each.name for each in candidates]

    def _measured(self, model: FrontModel) -> int:
        """Bytes of a model that is in memory; one that has just been started may not have taken all of them yet."""
        process = self.processes[model.name]
        if process.state is ProcessState.READY and process.pid is not None:
            pool = process.pool_used if self._pool is not None else 0
            fewer = 0 if process.cells is None else (model.cells - process.cells) * model.cell_bytes
            least = replace(model, nbytes=model.nbytes - fewer)
            found = max(least.nbytes, self._memory_of(least, process.pid) - pool)
            self._nbytes[model.name] = found + fewer
        return self._taken(model)

    def _candidate(self, model: FrontModel) -> ModelInMemory:
        process = self.processes[model.name]
        stays = model.pinned or process.active > 0 or process.state is not ProcessState.READY or bool(process.waiting)
        return ModelInMemory(
            model.name,
            self._taken(model),
            self._load_s(model) or _GUESSED_LOAD_S,
            self._clock.now() - process.uses.last,
            process.uses.between_s,
            stays,
        )

    def _load_s(self, model: FrontModel) -> float | None:
        return self.processes[model.name].load_s or model.expected_s()

    async def _look_around(self) -> None:
        await self._see_to_starter()
        while True:
            await asyncio.sleep(_LOOK_S)
            now = self._clock.now()
            for model in self._models.values():
                process = self.processes[model.name]
                process.kill_late()
                idle = now - process.uses.last
                unused = process.state is ProcessState.READY and not process.active and not model.pinned
                if self._keep_alive is not None and unused and idle >= self._keep_alive:
                    log.info("the model %s leaves memory: nobody has used it for %.0f s", model.name, idle)
                    process.retire()
                if now - self._since.get(model.name, now) > _WAIT_S:
                    process.refuse_waiting(Busy(f"there is no room for the model {model.name}: others are in use"))
                self._tell_waiting(model)
                if model.pinned and process.state is ProcessState.AWAY:
                    self._start(model, self._cells_for(model, self._room(self._there())))
            self._serve_waiting()
            await self._see_to_starter()

    async def _see_to_starter(self) -> None:
        """It is not started beside a model, whose start it would slow."""
        states = {process.state for process in self.processes.values()}
        if ProcessState.STARTING not in states:
            await self._starter.prepare(gently=ProcessState.READY in states)

    # -- apps

    async def _settle_apps(self, changed: ModelProcess) -> None:
        """A process has changed who may be which app: no other goes on with what it knew."""
        for process in self.processes.values():
            if process is changed:
                continue
            while process.state is ProcessState.STARTING:
                await asyncio.sleep(0.05)
            if process.in_memory:
                process.retire(force=True)
                await process.gone()
        changed.apps_settled()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _sockets(path: Path) -> list[SocketFile]:
    """That of apps, and the operator's. Raises SocketInUse, NotTrusted, ConfigError."""
    files: list[SocketFile] = []
    try:
        files.append(SocketFile(path))
        files.append(SocketFile(admin_socket(path)))
    except BaseException:
        for file in files:
            file.sock.close()
            file.remove()
            file.release()
        raise
    return files
