"""The cluster on Ray: the actors of nodes and of the controller, and how processes find them.

Law: Ray is imported here and nowhere else, and only when a cluster is wanted. It carries questions and answers, never
what a context consists of. Everything that it is told outlives any actor: who has joined is in Ray's own store, and
all else the nodes know.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from typing import Any, TypeVar

from llmaas.api.transfer_records import MovedContext
from llmaas.clock import RealClock
from llmaas.errors import ConfigError, NodeUnreachable
from llmaas.fair_thread import FairThread
from llmaas.nodes.card import host_and_port
from llmaas.nodes.cluster.agent import NodeAgent
from llmaas.nodes.cluster.controller import PlacementController
from llmaas.nodes.cluster.states import (
    CallPlacement,
    ClusterRefusal,
    ContextMove,
    FoundContext,
    NodePlace,
    NodeState,
    NodeSummary,
    PlaceAsked,
)

log = logging.getLogger(__name__)

NAMESPACE = "llmaas"
CONTROLLER = "controller"
_CONNECT_S = 10.0
ANSWER_S = 60.0
"""The controller may have to be begun anew on another machine meanwhile."""
_MOVE_S = 1000.0
_NODES_S = 0.25
"""Nodes that were told so long ago are told again."""
_STOPPED_S, _AGAIN_S = 30.0, 0.1
"""An actor that is told to end has ended by then; so often it is looked."""
T = TypeVar("T")


def ray_module() -> Any:
    """Ray, told to be quiet. Raises ConfigError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"a cluster needs Ray, which cannot be imported: {error}",
            hint="Install llmaas with its extra 'cluster': pip install 'llmaas[cluster]'. Where there is no wheel of "
            "Ray, as on Android, let the node join from another machine (docs/cluster.md).",
        ) from None
    return ray


def on_loopback(address: str) -> None:
    """Where the head is at HOST:PORT of loopback, let Ray stay there. By itself it takes 127.0.0.1 for this machine's
    address in its network, and listens everywhere; this variable, made for Windows, says that the cluster is this
    machine alone. To be called before Ray is imported."""
    if is_loopback(address):
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def is_loopback(address: str) -> bool:
    """
    >>> is_loopback("127.0.0.1:6379"), is_loopback("localhost:6379"), is_loopback("10.0.0.1:6379")
    (True, True, False)
    """
    host, _ = host_and_port(address)
    return host in ("localhost", "::1") or host.startswith("127.")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def connect(address: str, own: str | None = None) -> None:
    """Be a part of the cluster whose head is at HOST:PORT, as a client of it. ``own``: the address of the part of this
    machine that is meant; None: the head if it is here, else any. Raises NodeUnreachable, ConfigError."""
    on_loopback(address)
    ray = ray_module()
    if ray.is_initialized():
        return
    try:
        socket.create_connection(host_and_port(address), timeout=_CONNECT_S).close()  # Ray tries for minutes
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
            **({"_node_ip_address": own} if own is not None and _is_ip(own) else {}),  # a name Ray may have resolved
        )
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        raise NodeUnreachable(
            f"no Ray cluster answers at {address}, of which this machine is a part: {_first_line(error)}",
            hint="'llmaas cluster join NAME --head' begins one; '--ray HOST:PORT' makes this machine a part of one.",
        ) from error


def disconnect() -> None:
    ray_module().shutdown()


@contextmanager
def part_of(address: str, own: str | None = None) -> Iterator[None]:
    """``connect`` for the time of the block. Ray prints what it thinks of its parts to whatever is stdout, also where
    it is told to print no logs; that is the command's own, and holds JSON perhaps."""
    with redirect_stdout(sys.stderr):
        connect(address, own)
        try:
            yield
        finally:
            disconnect()


# -- actors


class RayAgents:
    """See ``controller.Agents``: those of the nodes that have joined."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self._thread = FairThread("ray-names")
        """Ray's own calls for names wait."""

    async def names(self) -> Sequence[str]:
        return await self._thread.run("names", _joined)

    async def state(self, node: str, run: str, serial: int, marks: int, fresh: bool) -> NodeState | None:
        try:
            handle: Any = self._handles.get(node) or await self._thread.run("actor", _agent, node)
            self._handles[node] = handle
            state: NodeState = await handle.state.remote(run, serial, marks, fresh=fresh)
            return state
        except (ValueError, _ray_error()) as error:
            log.info("the agent of %s does not answer: %s", node, _first_line(error))
            self._handles.pop(node, None)
            return None


class RayController(PlacementController):
    """The controller as an actor makes it."""

    def __init__(self) -> None:
        super().__init__(RayAgents())


def _ray_error() -> type[Exception]:
    """The class of what Ray raises where an actor does not answer."""
    from ray import exceptions

    found: type[Exception] = exceptions.RayError
    return found


def _agent_name(node: str) -> str:
    return f"node:{node}"


def _agent(node: str) -> Any:
    """Raises ValueError if there is none."""
    return ray_module().get_actor(_agent_name(node), namespace=NAMESPACE)


def controller() -> Any:
    """The controller's actor; it is begun if there is none."""
    ray = ray_module()
    made = ray.remote(RayController).options(
        name=CONTROLLER,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=1000,
        num_cpus=0,
    )
    return made.remote()


# -- who has joined: in the store of Ray's head


def _key(node: str = "") -> bytes:
    return f"llmaas-node:{node}".encode()


def _joined() -> list[str]:
    from ray.experimental import internal_kv

    return sorted(key.decode()[len(_key()) :] for key in internal_kv._internal_kv_list(_key()))


def join(place: NodePlace) -> NodeState:
    """Begin the agent of a node on this machine; one of that name that runs is replaced if it is of the same daemon.
    What it says first. Raises NodeUnreachable, ConfigError."""
    from ray.experimental import internal_kv
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray = ray_module()
    _refuse_namesake(ray, place)
    _end_agent(ray, place.name)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    agent = ray.remote(NodeAgent).options(
        name=_agent_name(place.name),
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=100,
        num_cpus=0,
        scheduling_strategy=here,
    )
    handle = agent.remote(place)
    internal_kv._internal_kv_put(_key(place.name), json.dumps(asdict(place)).encode(), overwrite=True)
    state: NodeState = _answer(ray, handle.state.remote(), f"the agent of {place.name}")
    controller().look.remote()
    return state


def _refuse_namesake(ray: Any, place: NodePlace) -> None:
    """Raises ConfigError if another machine's node has this name."""
    with suppress(ValueError, NodeUnreachable):
        there: NodeState = _answer(ray, _agent(place.name).state.remote(), "it", seconds=10.0)
        if there.serving and (there.place.socket, there.place.machine) != (place.socket, place.machine):
            raise ConfigError(
                f"the node {place.name} has joined already, with the daemon of {there.place.socket}",
                hint=f"Choose another name, or let that one leave: 'llmaas cluster leave {place.name}'.",
            )


def leave(node: str) -> bool:
    """Forget a node; its daemon and its contexts stay as they are. False if it has not joined."""
    from ray.experimental import internal_kv

    ray = ray_module()
    had = node in _joined()
    internal_kv._internal_kv_del(_key(node))
    _end_agent(ray, node)
    return had


def _end_agent(ray: Any, node: str) -> None:
    """Its name is free when this returns. Raises NodeUnreachable."""
    clock = RealClock()
    late = clock.now() + _STOPPED_S
    while True:
        try:
            ray.kill(_agent(node), no_restart=True)
        except ValueError:
            return
        if clock.now() > late:
            raise NodeUnreachable(f"the agent of {node} does not end")
        threading.Event().wait(_AGAIN_S)


def controller_pid() -> int:
    """The process of the controller, on whichever machine it is."""
    ray = ray_module()
    return int(_answer(ray, controller().pid.remote(), "the controller"))


def summaries() -> tuple[list[NodeSummary], list[tuple[str, str, tuple[str, ...]]]]:
    """All nodes, as they are now, and contexts that several of them have."""
    ray, asked = ray_module(), controller()
    _answer(ray, asked.look.remote(), "the controller")
    return _answer(ray, asked.nodes.remote(), "the controller"), _answer(ray, asked.twice.remote(), "the controller")


def _answer(ray: Any, reference: Any, who: str, seconds: float = ANSWER_S) -> Any:
    try:
        return ray.get(reference, timeout=seconds)
    except _ray_error() as error:
        raise NodeUnreachable(f"{who} does not answer: {_first_line(error)}", hint=_SEE) from error


# -- for an entry


class RayFleet:
    """See ``fleet.Fleet``. For one event loop."""

    def __init__(self) -> None:
        self._controller = controller()
        self._agents: dict[str, Any] = {}
        self._clock = RealClock()
        self._nodes: tuple[float, Sequence[NodeSummary]] = (float("-inf"), ())
        self._asking = asyncio.Lock()
        self._thread = FairThread("ray-names")

    def close(self) -> None:
        self._thread.close(finish=False)

    async def nodes(self) -> Sequence[NodeSummary]:
        async with self._asking:
            told, nodes = self._nodes
            if self._clock.now() - told >= _NODES_S:
                nodes = await self._answered(self._controller.nodes.remote())
                self._nodes = self._clock.now(), nodes
            return nodes

    async def look(self) -> None:
        await self._answered(self._controller.look.remote())
        self._nodes = float("-inf"), ()

    async def locate(self, app: str, word: str) -> Sequence[FoundContext]:
        found: list[FoundContext] = await self._answered(self._controller.locate.remote(app, word))
        return found

    async def where(self, asked: PlaceAsked) -> CallPlacement | ClusterRefusal:
        answer: CallPlacement | ClusterRefusal = await self._answered(self._controller.where.remote(asked))
        return answer

    async def move(self, move: ContextMove) -> MovedContext | ClusterRefusal:
        try:
            handle: Any = self._agents.get(move.source) or await self._thread.run("actor", _agent, move.source)
            self._agents[move.source] = handle
            said: MovedContext | ClusterRefusal = await self._answered(handle.move.remote(move), _MOVE_S)
            return said
        except ValueError:
            return ClusterRefusal.of(NodeUnreachable(f"the agent of {move.source} is not there"))
        except NodeUnreachable as error:
            self._agents.pop(move.source, None)
            return ClusterRefusal.of(error)

    async def _answered(self, asked: Awaitable[T], seconds: float = ANSWER_S) -> Any:
        try:
            return await asyncio.wait_for(asked, seconds)
        except asyncio.TimeoutError:
            raise NodeUnreachable(f"the cluster does not answer within {seconds:g} s", hint=_SEE) from None
        except _ray_error() as error:
            raise NodeUnreachable(f"the cluster does not answer: {_first_line(error)}", hint=_SEE) from error


_SEE = "'llmaas cluster status' shows who answers; if Ray's head is lost, begin a cluster anew and let nodes join."


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
