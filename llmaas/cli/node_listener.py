"""The daemon's part that other nodes talk to, if the settings ask for it.

Law: wires only; without the setting ``nodes`` nothing listens.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from llmaas.config.settings import Config
from llmaas.data_folder import main_folder
from llmaas.errors import ConfigError
from llmaas.version import __version__

if TYPE_CHECKING:
    from llmaas.nodes.listener import NodeListener
    from llmaas.nodes.mover import NodeMover
    from llmaas.service.service import Service


def refuse_nodes(config: Config) -> None:
    """Raises ConfigError: several models are served, each by a process of its own."""
    if config.nodes is not None:
        raise ConfigError(
            f"setting nodes is {config.nodes}, and several models are served",
            hint="A node serves one model: name one in the setting models, or leave nodes out.",
        )


def listen_for_nodes(config: Config, service: Service) -> NodeListener:
    """Raises ConfigError, MachineError."""
    from llmaas.nodes.identity import own_identity  # who has no other nodes needs none of it
    from llmaas.nodes.listener import NodeListener, node_socket
    from llmaas.nodes.pinned import PinnedNodes
    from llmaas.nodes.session import ArrivalHall

    assert config.nodes is not None
    data_dir = main_folder(config.data_dir)
    facts = {"llmaas": __version__, "model": service.hello()["model"]}
    own, nodes = own_identity(data_dir), PinnedNodes(data_dir)
    nodes.read()  # a file that is damaged is said now
    hall = ArrivalHall(service.transfers.arrivals)
    return NodeListener(node_socket(config.nodes), own, nodes, hall.session, lambda: dict(facts))


async def begin_moves(config: Config, service: Service) -> NodeMover:
    """Let contexts go to other nodes. Raises StoreFailed."""
    from llmaas.nodes.identity import own_identity
    from llmaas.nodes.mover import NodeMover
    from llmaas.nodes.pinned import PinnedNodes

    data_dir = main_folder(config.data_dir)
    mover = NodeMover(service.transfers.departures, partial(own_identity, data_dir), PinnedNodes(data_dir))
    await mover.start()
    service.transfers.begin_moves(mover.move, service)
    return mover
