"""Slots of shared memory for long: a million round trips, ten thousand clients killed, millions of states of nonsense.

``python -m tests.stress.slots [PART ...] [--trips N] [--kills N] [--states N] [--seed N]``; without a PART all of:

* ``trips``: 64 clients at once. Half of them sleep on the futex (``tests.slots.test_wakes``), half until a bell comes
  by the socket (``trips.c``); the service sleeps in its event loop. A wake-up that is lost makes one wait for ever.
* ``kills``: clients that use a slot in every way are killed at random instants (``victims.c``). Every slot must come
  back, and another client be served meanwhile.
* ``rings``: nonsense in every word, for the code of both sides, under the address sanitizer (``fuzz_rings.c``).
* ``client``: the C client under the address sanitizer, and a service that writes nonsense (``hostile_service.c``).
* ``service``: the service, and a client that writes nonsense (``hostile_client.c``). It may log no fault, keep no slot
  and no descriptor, and must serve others meanwhile.

With ``--far`` the slots are those of a virtual machine, without the machine: ``tests/support/far_slots.py``.

The service is the daemon's edge on a scripted backend, in this process; C programs need a compiler. Prints a line of
JSON for each part.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmaas.api.client import Client
from llmaas.api.server import Server
from llmaas.slots.grants import SlotSettings
from tests.slots.test_wakes import CLIENTS
from tests.support.far_slots import serving_far_in_a_thread
from tests.support.faults_logged import FaultsLogged
from tests.support.scripted import ScriptedBackend, serving_in_a_thread

ROOT = Path(__file__).parents[2]
SLOTS, BRIDGE = ROOT / "tests/slots", ROOT / "android_bridge/c"
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread")
WITH_CLIENT = ("-O1", "-pthread", "-DLLMAAS_SLOTS", f"-I{BRIDGE}", f"-I{ROOT / 'llmaas/slots'}")
BATCH = 500
"""Clients that are killed until it is looked whether their slots have come back."""
STUCK_S = 20.0
ATTACKERS = 24


class Flaw(Exception):
    """What must not be."""


@dataclass(frozen=True)
class Programs:
    """C programs, built when they are wanted."""

    folder: Path
    far: bool = False
    """Whether the service they use has slots in memory that it was lent, behind a line as if it were in a guest."""

    def __getitem__(self, name: str) -> Path:
        built = self.folder / name
        if not built.exists():
            flags = {"fuzz_rings": SANITIZED, "hostile_service": (*SANITIZED, *WITH_CLIENT[2:])}.get(name, WITH_CLIENT)
            library = [BRIDGE / "llmaas.c"] if name in ("trips", "victims") else []
            command = ["cc", "-std=gnu11", *flags, SLOTS / f"{name}.c", *library, "-o", built]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
            if done.returncode:
                raise Flaw(f"{name}.c cannot be built:\n{done.stderr}")
        return built


class Edge:
    """The service that is attacked."""

    def __init__(self, path: Path, there: Callable[..., Any]) -> None:
        self.path, self._there = path, there

    def in_use(self) -> int:
        """How many slots are granted."""

        async def count(_: ScriptedBackend, server: Server) -> int:
            return server.slots.grants.in_use

        return int(self._there(count))

    def wait_until_free(self, but: int = 0) -> None:
        """Raises Flaw if more slots than ``but`` stay granted."""
        late = time.monotonic() + STUCK_S
        while (n := self.in_use()) > but:
            if time.monotonic() > late:
                raise Flaw(f"{n - but} slots are stuck")
            time.sleep(0.01)


@contextlib.contextmanager
def serving(settings: SlotSettings, far: bool = False) -> Iterator[Edge]:
    """At the end nothing may be left: no slot, no descriptor, no fault in the log."""
    faults, quiet = FaultsLogged(), logging.getLogger("llmaas.slots.transport")
    logging.getLogger().addHandler(faults)
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # that a slot was broken is what is wanted, a million times
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "s"
            before = descriptors()
            lent = {"count": settings.count, "nbytes": settings.nbytes}
            served = serving_far_in_a_thread(path, **lent) if far else serving_in_a_thread(path, slots=settings)
            with served as there:
                edge = Edge(path, there)
                yield edge
                edge.wait_until_free()
    finally:
        quiet.setLevel(level)
        logging.getLogger().removeHandler(faults)
    if faults.said:
        raise Flaw(f"the service logged {len(faults.said)} faults: {faults.said[0]}")
    if (left := descriptors()) > before:
        raise Flaw(f"{left - before} descriptors are left open")


def descriptors() -> int:
    """How many this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def program(*command: str | Path | int) -> str:
    """What it prints. Raises Flaw if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise Flaw(f"{Path(str(command[0])).name} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


# -- the parts --------------------------------------------------------------------------------------


def trips(programs: Programs, n: int, seed: int) -> dict[str, Any]:
    """``n`` round trips of 64 slots."""
    each = max(1, n // 64)
    with serving(SlotSettings(128, 16 << 10), programs.far) as edge:
        python = [sys.executable, "-c", CLIENTS, str(edge.path), "futex", str(each)]
        c = [str(programs["trips"]), str(edge.path), "bells", "16", str(each)]
        started = [subprocess.Popen(python, cwd=ROOT) for _ in range(4)]
        started += [subprocess.Popen([*c, str(seed + i)]) for i in range(2)]
        codes = [process.wait() for process in started]
        if any(codes):
            raise Flaw(f"clients ended with {codes}")
    return {"round_trips": 64 * each}


def kills(programs: Programs, n: int, seed: int) -> dict[str, Any]:
    """``n`` clients are killed, in batches; after each all their slots must be free."""
    early = used = 0
    with (
        serving(SlotSettings(64, 16 << 10), programs.far) as edge,
        Client(edge.path, app="other", transport="slots") as other,
    ):
        for first in range(0, n, BATCH):
            batch = min(BATCH, n - first)
            found = program(programs["victims"], edge.path, "victim", batch, seed + first).split()
            early, used = early + int(found[0]), used + int(found[1])
            edge.wait_until_free(but=1)
            other.ping()
    return {"killed": early + used, "before_they_had_a_slot": early}


def rings(programs: Programs, n: int, seed: int) -> dict[str, Any]:
    program(programs["fuzz_rings"], n, seed)
    return {"states": n}


def client(programs: Programs, n: int, seed: int) -> dict[str, Any]:
    """A client in C against a service that writes nonsense."""
    with tempfile.TemporaryDirectory() as folder:
        good, failed = map(int, program(programs["hostile_service"], Path(folder) / "s", n, seed).split())
    if not good or not failed:
        raise Flaw(f"of the requests {good} ended well, and {failed} with an error: that is no test")
    return {"states": n, "requests": good + failed, "of_them_failed": failed}


def service(programs: Programs, n: int, seed: int) -> dict[str, Any]:
    """A service against clients in C that write nonsense: many at once, since each is not heard for a while after it
    has rung for nothing, or sent a part of a frame."""
    with (
        # Far slots are each app's own, and the service keeps those of a connection that it has ended for a second.
        serving(SlotSettings(512 if programs.far else 64, 16 << 10), programs.far) as edge,
        Client(edge.path, app="other", transport="slots") as other,
    ):
        shares = [n // ATTACKERS + (i < n % ATTACKERS) for i in range(ATTACKERS)]
        command = [str(programs["hostile_client"]), str(edge.path)]
        # Who was an app's client may write into the memory that the app's next one gets, if that is one that was lent.
        apps = [f"hostile-{i}" if programs.far else "hostile" for i in range(ATTACKERS)]
        began, waits = resident(), list[float]()
        attackers = [
            subprocess.Popen([*command, app, str(share), str(seed + i)], stdout=subprocess.PIPE, text=True)
            for i, (app, share) in enumerate(zip(apps, shares, strict=True))
        ]
        while any(attacker.poll() is None for attacker in attackers):
            begin = time.perf_counter()
            other.ping()
            waits.append(time.perf_counter() - begin)
            time.sleep(0.02)
        said = [attacker.communicate()[0] for attacker in attackers]
        if any(attacker.returncode for attacker in attackers):
            raise Flaw(f"attackers ended with {[attacker.returncode for attacker in attackers]}")
        edge.wait_until_free(but=1)
        grown = resident() - began
        if grown > 64 << 20:
            raise Flaw(f"the service grew by {grown >> 20} MiB")
    return {"states": n, "connections": sum(map(int, said)), "others_waited_ms": round(max(waits) * 1e3, 1)}


FAR = ("trips", "kills", "service")
"""Those that are otherwise if host and guest share the slots."""
PARTS: dict[str, Callable[[Programs, int, int], dict[str, Any]]] = {
    part.__name__: part for part in (trips, kills, rings, client, service)
}


def run(parts: dict[str, int], seed: int, far: bool = False) -> Iterator[dict[str, Any]]:
    """The figures of each of the parts, of which so many are wanted. Raises Flaw."""
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(Path(folder), far)
        for name, n in parts.items():
            begin = time.monotonic()
            found = PARTS[name](programs, n, seed)
            yield {"part": name, "far": far, **found, "seconds": round(time.monotonic() - begin, 1), "seed": seed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--trips", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--states", type=int, default=1_000_000, help="of each kind (default: %(default)s)")
    parser.add_argument("--far", action="store_true", help="trips, kills and service across a machine's border")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    args = parser.parse_args()
    counts = {"trips": args.trips, "kills": args.kills}
    try:
        wanted = {name: counts.get(name, args.states) for name in args.parts or (FAR if args.far else PARTS)}
        for found in run(wanted, args.seed, args.far):
            print(json.dumps(found), flush=True)
    except Flaw as flaw:
        print(flaw, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
