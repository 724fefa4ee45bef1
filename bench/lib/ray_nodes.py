"""A cluster on Ray of daemons that a bench has started: the head, the agents and the controller, on this machine alone.

Law: what Ray starts here ends with the block, whatever becomes of the bench; it is known by its folder.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psutil

from bench.lib.machine import ROOT
from bench.lib.node import NodeProcess, free_port
from llmaas.nodes.cluster import ray_cluster, ray_start
from llmaas.nodes.cluster.states import NodePlace

_ENDED_S = 60.0


@contextmanager
def on_ray(nodes: Sequence[NodeProcess]) -> Iterator[str]:
    """Let the daemons join a new cluster, of which this process is a part, too; the address of its head."""
    temp, before = tempfile.mkdtemp(prefix="llr-", dir="/tmp"), dict(os.environ)
    os.environ["RAY_TMPDIR"] = temp
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *(each for each in sys.path if each)])
    address = f"127.0.0.1:{free_port(set())}"
    try:
        ray_start.start_head(address)
        with ray_cluster.part_of(address):
            del os.environ["RAY_TMPDIR"]  # a daemon that is started again is none of Ray's
            with ThreadPoolExecutor() as pool:
                list(pool.map(_join, nodes))
            yield address
    finally:
        ended = ray_processes(temp)
        for process in ended:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(ended, _ENDED_S)
        shutil.rmtree(temp, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


def _join(node: NodeProcess) -> None:
    place = NodePlace(node.name, str(node.socket), os.uname().nodename, data_dir=str(node.folder / "store"))
    ray_cluster.join(place)


def ray_processes(temp: str) -> list[psutil.Process]:
    """All that Ray runs in that folder. Its workers hide their environment, so children are looked for, too."""
    found = dict[int, psutil.Process]()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("RAY_TMPDIR") == temp:
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return list(found.values())
