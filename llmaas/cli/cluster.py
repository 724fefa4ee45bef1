"""``llmaas cluster``: several nodes as one, on Ray.

Law: a node's daemon runs as ever, and is not touched. ``join`` returns when the node is in; ``serve`` stays in the
foreground, as ``llmaas serve`` does, and ends gracefully on SIGTERM and SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmaas.cli.http_process import http_beside, require_packages
from llmaas.cli.log_format import log_to_stderr
from llmaas.cli.manager import notify_manager
from llmaas.cli.options import add_actions, add_settings, loaded, socket_of
from llmaas.cli.out import print_error, print_json, print_note, printable, table
from llmaas.config.sources import LoadedConfig
from llmaas.data_folder import main_folder
from llmaas.errors import BadRequest
from llmaas.records import SHORT_NAME

if TYPE_CHECKING:
    from llmaas.nodes.cluster.states import NodeSummary

log = logging.getLogger(__name__)

_EPILOG = """\
examples:
  llmaas cluster join desk --head                 begin a cluster on this machine, and let its daemon join as 'desk'
  llmaas cluster join desk --head 192.168.1.5:6379 --door 192.168.1.5:7412 --let-in shelf    one that others reach
  llmaas cluster join shelf --ray 192.168.1.5:6379 --own 192.168.1.6     another machine; both are paired
  llmaas cluster join phone --socket ~/phone.sock --elsewhere    one without Ray, whose sockets ssh forwards to here
  llmaas cluster serve --socket ~/cluster.sock    the sockets of a daemon, behind which there are all nodes
  llmaas cluster serve --socket ~/cluster.sock --http 127.0.0.1:11434     OpenAI's and Ollama's APIs, too
  llmaas cluster status                           which nodes, what they hold, and what is wrong with them
  llmaas cluster leave shelf                      the node goes; its daemon and its contexts stay as they are

A node is called as other nodes have paired it ('llmaas node pair'): contexts go from one to another by these names.
Ray comes with the extra 'cluster' (pip install 'llmaas[cluster]'). docs/cluster.md tells the rest.
"""
_RAY = "RAY_ADDRESS"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    action = add_actions(parser, of_client=False)
    join = action("join", _join, "let a node whose daemon runs be a part of a cluster")
    join.add_argument("name", metavar="NAME", help="what the other nodes call it ('llmaas node ls' there)")
    join.add_argument(
        "--head", nargs="?", const="", metavar="HOST:PORT", help="begin the cluster here (default: on loopback)"
    )
    join.add_argument("--own", metavar="HOST", help="this machine's address, if Ray does not run here yet")
    join.add_argument("--door", metavar="HOST:PORT", help="listen here for entries on other machines, over TLS")
    join.add_argument("--let-in", metavar="NODE", action="append", default=[], help="whose entries may come in by it")
    join.add_argument(
        "--elsewhere", action="store_true", help="the daemon is on another machine, and its sockets are forwarded"
    )
    add_settings(join, ["socket", "daemon_uid", "data_dir"])
    serve = action("serve", _serve, "be the entry: serve a daemon's sockets and HTTP for all nodes")
    add_settings(serve, ["socket", "http", "http_tokens", "http_hosts", "data_dir", "nice", "log_level", "log_format"])
    status = action("status", _status, "list the nodes; exit code 1 if one of them does not serve")
    status.add_argument("--json", action="store_true", help="print JSON")
    leave = action("leave", _leave, "forget a node; its daemon and its contexts stay as they are")
    leave.add_argument("name", metavar="NAME")
    for sub in (join, serve, status, leave):
        sub.add_argument(
            "--ray", metavar="HOST:PORT", help=f"the cluster's head (default: {_RAY}, else 127.0.0.1:6379)"
        )


def run(args: argparse.Namespace) -> int:
    code: int = args.do(args)
    return code


def _address(args: argparse.Namespace) -> str:
    from llmaas.nodes.card import check_address
    from llmaas.nodes.cluster.ray_start import DEFAULT_ADDRESS

    return check_address(args.ray or os.environ.get(_RAY) or DEFAULT_ADDRESS)


def _join(args: argparse.Namespace) -> int:
    from llmaas.nodes.card import check_address
    from llmaas.nodes.cluster import ray_cluster, ray_start
    from llmaas.nodes.cluster.states import NodePlace

    found = loaded(args)
    here = None if args.elsewhere else main_folder(found.config.data_dir)
    if (args.door is not None) != bool(args.let_in) or (args.door is not None and here is None):
        raise BadRequest(
            "a door (--door) is for the daemon of this machine, and for nodes that --let-in names",
            hint="Give both --door HOST:PORT and --let-in NODE, and leave --elsewhere out.",
        )
    if not re.fullmatch(SHORT_NAME, args.name):
        raise BadRequest(f"{args.name!r} is no name of a node", hint="Use letters, digits and . _ - for it.")
    place = NodePlace(
        args.name,
        str(Path(socket_of(found)).absolute()),
        socket.gethostname(),
        found.config.daemon_uid,
        None if here is None else str(here.absolute()),
        None if args.door is None else check_address(args.door),
        tuple(args.let_in),
    )
    address = _address(args)
    if args.head is not None:
        address = check_address(args.head) if args.head else address
        ray_start.start_head(address)
    elif args.own is not None:
        ray_start.start_part(address, args.own)
    with ray_cluster.part_of(address, args.own):
        state = ray_cluster.join(place)
    if not state.serving:
        print_error(f"{place.name} has joined, but {state.why}", "It serves as soon as its daemon does.")
        return 1
    print(f"{place.name} is in the cluster of {address}: {printable(state.model)}, {state.n_contexts} contexts")
    return 0


def _leave(args: argparse.Namespace) -> int:
    from llmaas.nodes.cluster import ray_cluster

    with ray_cluster.part_of(_address(args)):
        had_joined = ray_cluster.leave(args.name)
    if not had_joined:
        raise BadRequest(f"no node {args.name!r} has joined", hint="'llmaas cluster status' lists those that have.")
    print(f"{args.name} has left; its daemon serves its contexts as before")
    return 0


def _status(args: argparse.Namespace) -> int:
    from llmaas.nodes.cluster import ray_cluster

    with ray_cluster.part_of(_address(args)):
        nodes, twice = ray_cluster.summaries()
        controller_pid = ray_cluster.controller_pid() if args.json else 0
    if args.json:
        maps = [dataclasses.asdict(node) for node in nodes]
        print_json({"nodes": maps, "twice": twice, "controller_pid": controller_pid})
    elif nodes:
        head = ["NODE", "SERVES", "CONTEXTS", "RUN", "WAIT", "TOKENS/S", "REACHES"]
        print(table(head, [_row(node) for node in nodes], sys.stdout))
    else:
        print("No node has joined; 'llmaas cluster join' lets one.")
    for node in nodes:
        if not node.serving:
            print_note(f"{node.place.name} does not serve: {printable(node.why)}")
    for app, name, at in twice:
        print_note(f"{printable(name)} of {app} is at several nodes: {', '.join(at)}; delete or move all but one")
    return int(not all(node.serving for node in nodes))


def _row(node: NodeSummary) -> list[str]:
    model = printable(node.model)[:40] if node.serving else "-"
    numbers = [str(node.n_contexts), str(node.n_active - node.n_waiting), str(node.n_waiting)]
    return [node.place.name, model, *numbers, f"{node.prefill_rate:.0f}", ", ".join(node.links) or "-"]


def _serve(args: argparse.Namespace) -> int:
    from llmaas.nodes.cluster import ray_cluster

    found = loaded(args)
    if found.config.http is not None:
        require_packages()
    log_to_stderr(found.config.log_level, found.config.log_format)
    ray_cluster.connect(_address(args))
    try:
        asyncio.run(_serve_entry(found))
    finally:
        ray_cluster.disconnect()
    return 0


async def _serve_entry(found: LoadedConfig) -> None:
    from llmaas.nodes.cluster.entry import ClusterEntry
    from llmaas.nodes.cluster.fleet import WayToNodes
    from llmaas.nodes.cluster.ray_cluster import RayFleet

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    fleet = RayFleet()
    entry = ClusterEntry(fleet, Path(found.config.socket), WayToNodes(main_folder(found.config.data_dir)))
    entry.start()
    try:
        async with http_beside(found):
            log.info("ready: the cluster on %s", found.config.socket)
            notify_manager("READY=1")
            await stop.wait()
            notify_manager("STOPPING=1")
    finally:
        await entry.close()
        fleet.close()
    log.info("stopped")
