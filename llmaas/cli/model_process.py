"""The process of one of several models, at its end of the channel to the front process.

Law: it serves the connections that it is given, and hands those back that nobody uses when it is to leave memory. When
the front process is gone, it ends as by SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from llmaas.api.caller import Door
from llmaas.api.handed import ConnectionMark, ConnectionMarks, HandedConnection
from llmaas.errors import LlmaasError
from llmaas.front.channel import Channel, Message

if TYPE_CHECKING:
    from llmaas.api.server import Server
    from llmaas.policies.bit_price import BitCurve
    from llmaas.service.service import Service

log = logging.getLogger(__name__)

_REPORT_S = 0.1
"""How often the front process is told what runs, if that has changed."""
_STEP = 1 << 20
"""Bytes in the POOL or on disk that are worth a report."""
_CURVE_TURNS = 10
"""After so many reports it is told what the model would do with more bits, if that has changed."""
_DRAIN_S, _SETTLE_S = 5.0, 60.0


class FrontLink:
    """Serves the front process at the other end of ``fd``, from now to ``close``; ``stop`` ends the daemon."""

    def __init__(self, fd: int, server: Server, service: Service, stop: Callable[[], None], cells: int = 0) -> None:
        """``cells``: that there are."""
        self._server, self._service, self._stop = server, service, stop
        self._channel = Channel(socket.socket(fileno=fd), self._on_message, self._front_is_gone)
        self._tasks: set[asyncio.Task[None]] = set()
        self._settled: asyncio.Event = asyncio.Event()
        self._tells_curve = False
        """Whether bits are shared out among models, by what each would do with more."""
        self._told_curve: BitCurve | None = None
        self._marks: ConnectionMarks | None = None
        """What the front process knows of connections if this one is killed."""
        service.apps.on_changed = self._tell_apps_changed
        self._reporter = asyncio.ensure_future(self._report())
        self._channel.send({"t": "ready", "cells": cells})

    async def close(self) -> None:
        self._reporter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reporter
        await self._channel.drained(_DRAIN_S)
        self._channel.close()

    def _on_message(self, message: Message, fd: int | None) -> None:
        match message["t"]:
            case "connection" if fd is not None:
                door, sock = Door[message["door"]], socket.socket(fileno=fd)
                sock.setblocking(False)
                handed = HandedConnection(door, sock, message["hello"], message["greet"], self._mark(message["number"]))
                task = asyncio.ensure_future(self._server.adopt(handed))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case "marks" if fd is not None:
                self._marks = ConnectionMarks(fd)
                os.close(fd)
            case "retire":
                self._retire(force=message["force"])
            case "pool":
                self._service.budgets.entitle(int(message["nbytes"]))
            case "bits":
                self._service.budgets.entitle_bits(float(message["bits"]))
                self._tells_curve = True
            case "disk":
                self._service.budgets.entitle_disk(int(message["nbytes"]))
            case "apps_settled":
                self._settled.set()

    def _mark(self, number: int | None) -> ConnectionMark | None:
        if self._marks is None or number is None:
            return None
        return ConnectionMark(self._marks, number, lambda: self._channel.send({"t": "gone", "number": number}))

    def _retire(self, *, force: bool) -> None:
        """Leave memory, unless somebody uses the model; then say so."""
        if force:
            self._stop()
            return
        in_use = self._service.usage[0] or self._tasks
        connections = None if in_use else self._server.detach_all()
        if connections is None:
            self._channel.send({"t": "busy"})
            return
        for each in connections:
            number = None if each.mark is None else each.mark.number
            message = {"t": "idle", "door": each.door.name, "hello": each.hello, "number": number}
            self._channel.send(message, each.sock.detach())
        self._stop()

    async def _report(self) -> None:
        before: tuple[int, int, int, int, str] | None = None
        for turn in itertools.count():
            running, total = self._service.usage
            pool, disk = self._service.budgets.pool_used, self._service.budgets.disk_used
            tier = self._service.weights.tier.value
            found = (running + len(self._server.tasks), total, pool // _STEP, disk // _STEP, tier)
            if found != before:
                used = before is None or found[:2] != before[:2]
                before = found
                about = {"active": found[0], "pool": pool, "disk": disk, "tier": tier}
                self._channel.send({"t": "state", **about, "used": used})
            if self._tells_curve and turn % _CURVE_TURNS == 0:
                self._tell_curve()
            for connection in self._server.connections:
                connection.settle_mark()
            await asyncio.sleep(_REPORT_S)

    def _tell_curve(self) -> None:
        curve = self._service.budgets.bit_curve
        if curve is not None and curve != self._told_curve:
            self._told_curve = curve
            steps = [[bucket, nbytes] for bucket, nbytes in curve.steps.items()]
            self._channel.send({"t": "curve", "values": curve.values, "floor": curve.floor, "steps": steps})

    async def _tell_apps_changed(self) -> None:
        """Return when no other process goes on with what it knew of apps."""
        self._settled.clear()
        self._channel.send({"t": "apps"})
        try:
            await asyncio.wait_for(self._settled.wait(), _SETTLE_S)
        except asyncio.TimeoutError:
            log.error("the processes of other models still go by what was said of apps before")

    def _front_is_gone(self) -> None:
        log.error("the front process is gone; this one ends")
        self._stop()


def tell_failure(fd: int, error: LlmaasError) -> None:
    """Tell the front process why this one cannot serve."""
    _tell_last(fd, {"t": "failed", "code": error.code, "message": error.message, "hint": error.hint})


def tell_end(fd: int) -> None:
    """Tell the front process that all is closed and on disk: this process ends now, and its memory becomes free."""
    _tell_last(fd, {"t": "end"})


def _tell_last(fd: int, message: Mapping[str, object]) -> None:
    import msgpack  # type: ignore[import-untyped,unused-ignore]

    with contextlib.suppress(OSError, ValueError):
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        sock.send(msgpack.packb(message))
        sock.close()
