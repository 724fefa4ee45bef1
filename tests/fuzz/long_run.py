"""Millions of frames and bodies against a daemon and its HTTP server on the fake engine.

``python -m tests.fuzz.long_run [--frames 1000000] [--bodies 100000] [--seed N]`` sends them from a process of its own.
Each request must get exactly one terminal reply, each body one response in the shape of its API; the daemon must not
log an unexpected fault, grow by more than 64 MiB, or hang; at the end its books must balance. One in twenty connections
sends noise, after which the daemon must still serve. ``--guided SECONDS`` instead lets atheris (pip install atheris)
look for inputs of the two decoders by what code they reach.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import logging
import multiprocessing
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llmaas.api.wire import Decoder, encode
from tests.fuzz import frames
from tests.fuzz.responses import check_response
from tests.support.faults_logged import FaultsLogged
from tests.support.http_edge import http_edge
from tests.support.scripted import HELLO

PER_CONNECTION = 48
"""Requests in flight at once; the daemon allows 64."""
HANG_S = 60.0
MOST_GROWTH = 64 << 20


class Flaw(Exception):
    """The daemon did what it must not do."""


class Attacker:
    """Sends frames and bodies to a daemon, and compares the replies with what must come."""

    def __init__(self, unix: Path, address: str, seed: int) -> None:
        self._unix, self._address = unix, address
        self._rng = random.Random(seed)
        self.n_frames = self.n_bodies = 0

    def connection(self) -> None:
        """One connection with some requests, whose replies are counted."""
        ids = range(1, PER_CONNECTION + 1)
        ended: dict[int, int] = dict.fromkeys(ids, 0)
        with self._connected() as sock:
            sock.sendall(encode(HELLO) + b"".join(frames.request(self._rng, i) for i in ids))
            decoder = Decoder()
            while not all(ended.values()):
                data = sock.recv(1 << 16)
                if not data:
                    raise Flaw(f"the connection was closed; without a reply: {[i for i, n in ended.items() if not n]}")
                for reply in decoder.feed(data):
                    self.count(reply, ended)
        self.n_frames += PER_CONNECTION

    @staticmethod
    def count(reply: Any, ended: dict[int, int]) -> None:
        """Take a reply into ``ended``, the number of terminal replies by id. Raises Flaw."""
        if reply["type"] not in ("hello", "piece", "done", "failed"):
            raise Flaw(f"a reply of type {reply['type']!r}")
        if reply.get("code") in ("internal", "policy_bug", "engine_failed", "store_failed"):
            raise Flaw(f"a fault of the daemon's: {reply}")
        if reply["type"] in ("done", "failed"):
            if reply["id"] not in ended or ended[reply["id"]]:
                raise Flaw(f"a second reply, or one to nobody: {reply}")
            ended[reply["id"]] = 1

    def noise(self) -> None:
        """One connection with anything, hung up at any time."""
        with self._connected() as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            parts = [frames.noise(self._rng) for _ in range(self._rng.randrange(1, PER_CONNECTION))]
            sock.sendall((encode(HELLO) if self._rng.random() < 0.7 else b"") + b"".join(parts))
            self.n_frames += len(parts)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass

    def _connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(HANG_S)
        sock.connect(str(self._unix))
        return sock

    def bodies(self, n: int) -> None:
        """So many bodies on one connection."""
        http_connection = http.client.HTTPConnection(self._address, timeout=HANG_S)
        for _ in range(n):
            path = self._rng.choice(sorted(frames.BODIES))
            http_connection.request("POST", path, self._body(path), {"content-type": "application/json"})
            reply = http_connection.getresponse()
            check_response(path, reply.status, reply.headers["content-type"], reply.read())
            self.n_bodies += 1
        http_connection.close()

    def _body(self, path: str) -> bytes:
        found = frames.altered(self._rng, frames.BODIES[path], self._rng.choice((0, 1, 1, 2, 3)))
        body = json.dumps(found).encode("utf-8", "surrogatepass")
        if self._rng.random() < 0.1:
            at = self._rng.randrange(len(body) + 1)
            body = body[:at] + self._rng.randbytes(self._rng.randrange(4)) + body[at + self._rng.randrange(4) :]
        return body


def attack(unix: str, address: str, seed: int, n_frames: int, n_bodies: int, sent: Any, result: Any) -> None:
    """All of it, in a process of its own. ``sent`` is how much that is so far; ``result`` gets what is wrong, or ""."""
    attacker, rng = Attacker(Path(unix), address, seed), random.Random(seed + 1)
    try:
        while attacker.n_frames < n_frames or attacker.n_bodies < n_bodies:
            if attacker.n_frames < n_frames:
                attacker.noise() if rng.random() < 0.05 else attacker.connection()
            if attacker.n_bodies < n_bodies and attacker.n_bodies * n_frames <= attacker.n_frames * n_bodies:
                attacker.bodies(min(50, n_bodies - attacker.n_bodies))
            sent[0], sent[1] = attacker.n_frames, attacker.n_bodies
    except Exception as error:
        result.put(f"after {attacker.n_frames} frames and {attacker.n_bodies} bodies: {error!r}")
    else:
        result.put("")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def run(n_frames: int, n_bodies: int, seed: int) -> dict[str, Any]:
    """The figures. Raises Flaw, and AssertionError if the daemon's books do not balance at the end."""
    faults, spawn, began = FaultsLogged(), multiprocessing.get_context("spawn"), time.monotonic()
    logging.getLogger().addHandler(faults)
    sent, result, warm = spawn.Array("q", 2), spawn.Queue(), 0
    with tempfile.TemporaryDirectory() as folder:
        async with http_edge(Path(folder), end_rate=0.05, n_cells=2048) as edge:
            args = (str(edge.daemon.socket), edge.address, seed, n_frames, n_bodies, sent, result)
            process = spawn.Process(target=attack, args=args, daemon=True)
            process.start()
            while process.is_alive():
                await asyncio.sleep(0.2)
                if not warm and (sent[0] > n_frames // 10 or sent[1] > n_bodies // 10):
                    warm = _resident()
                if faults.said:
                    process.kill()
            if faults.said:
                raise Flaw(f"after {sent[0]} frames and {sent[1]} bodies the daemon logged: {faults.said[0]}")
            if wrong := result.get(timeout=5):
                raise Flaw(wrong)
            grown = max(0, _resident() - (warm or _resident()))
    if grown > MOST_GROWTH:
        raise Flaw(f"the daemon grew by {grown >> 20} MiB")
    seconds = round(time.monotonic() - began, 1)
    return {"frames": sent[0], "bodies": sent[1], "seconds": seconds, "grown_bytes": grown, "seed": seed}


def guided(seconds: float) -> None:
    """Let atheris look for inputs that make a decoder fail otherwise than by its own errors. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["llmaas"]):
        from llmaas.api import messages as msg
        from llmaas.errors import LlmaasError
        from llmaas.http.call import decoded
        from llmaas.http.chat_types import ChatRequest
        from llmaas.http.errors import HttpError

    def one(data: bytes) -> None:
        with contextlib.suppress(LlmaasError):
            for frame in Decoder().feed(data):
                msg.request(frame)
        with contextlib.suppress(HttpError):
            decoded(data, ChatRequest)

    with tempfile.TemporaryDirectory() as corpus:
        rng = random.Random(0)
        for i in range(200):
            (Path(corpus) / f"f{i}").write_bytes(frames.request(rng, i))
        for i, body in enumerate(frames.BODIES.values()):
            (Path(corpus) / f"b{i}").write_bytes(json.dumps(body).encode())
        atheris.Setup([sys.argv[0], corpus, f"-max_total_time={seconds:.0f}", "-max_len=4096"], one)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--bodies", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--guided", type=float, metavar="SECONDS", help="let atheris choose the inputs, for so long")
    args = parser.parse_args()
    if args.guided:
        guided(args.guided)
    try:
        print(json.dumps(asyncio.run(run(args.frames, args.bodies, args.seed))))
    except Flaw as flaw:
        print(flaw, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
