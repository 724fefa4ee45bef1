"""kill -9 of a whole daemon at random moments: every acknowledged turn is there after a restart, and contexts go on.

Four apps use the daemon at once. It has the fake engine, whose answers depend on every byte of KV. Some kills come from
outside at a random time, the others from inside, at each stage of the work in turn: in a system call of the store (of a
swap-out, a compaction, a deletion), before and after a commit, while a chunk is measured, coded or coded again. There
are four kills by default, as many as the environment variable LLMAAS_KILLS says, or 50 with the marker ``slow``.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.errors import NotServing
from llmaas.kvchunks.store import master_key
from llmaas.kvchunks.store.store import Store
from llmaas.records import ContextId
from tests.stress.daemon_under_test import CELLS, END_RATE, MASTER, SITES, STAGES, Victim, start
from tests.support.books import Book, book_of
from tests.support.checked_app import App
from tests.support.oracle import Oracle, adapter_files
from tests.support.random_models import write_hybrid

APPS = 4
LONGEST = 60.0
"""Seconds within which a kill from inside must happen, on a busy machine."""
RARE = ("sync", "unlink")
"""What only a compaction does, of which there are few: the daemon dies inside the first."""
ORACLE = partial(Oracle, CELLS, end_rate=END_RATE)


@dataclass
class Tally:
    kills: int = 0
    acknowledged: int = 0
    interrupted: int = 0
    """Operations that had no reply when the kill came."""
    done_all_the_same: int = 0
    """Those of them that were on disk."""
    from_disk: int = 0
    """Tokens that came back from the disk after the kills."""
    recomputed: int = 0
    sites: list[str] = field(default_factory=list)


def work(app: App, victim: Victim) -> None:
    with contextlib.suppress(NotServing), Client(victim.socket, app=app.name) as client:
        app.run(client, lambda: True)
    victim.process.wait(LONGEST)  # the connection ended because the daemon was killed


def work_until_killed(apps: list[App], victim: Victim, delay: float | None) -> None:
    """All apps use the daemon until it is killed after ``delay`` seconds, or, with None, kills itself."""
    with ThreadPoolExecutor(APPS) as pool:
        timer = threading.Timer(LONGEST if delay is None else delay, victim.process.kill)
        timer.start()
        for future in [pool.submit(work, app, victim) for app in apps]:
            future.result()
    victim.process.wait(LONGEST)
    assert delay is not None or timer.is_alive(), "it should have killed itself"
    timer.cancel()
    timer.join()
    assert victim.end(signal.SIGKILL) == -signal.SIGKILL, victim.said
    assert victim.said == [], "".join(victim.said)


def stored(store: Store, app: App) -> dict[ContextId, Book]:
    rows = [row for row in store.contexts() if row.app.endswith(f"/{app.name}")]
    for row in rows:
        assert row.n_tokens == len(store.tokens(row.id))
    return {row.id: book_of(row.name, store.spans(row.id), row.adapter) for row in rows}


def reconcile(app: App, found: dict[ContextId, Book], tally: Tally) -> None:
    """What is stored must be what was acknowledged; of the operation under way, all or nothing."""
    pending, app.pending = app.pending, None
    if pending is not None:
        tally.interrupted += 1
        id = pending.id or next((id for id, book in found.items() if book.name == pending.name), None)
        now = found.get(id) if id else None
        assert now in pending.allowed, f"{app.name}: {pending.name} is half done: {now}"
        tally.done_all_the_same += now != pending.allowed[0]
        if id is not None:
            app.books.pop(id, None)
            if now is not None:
                app.books[id] = now
    assert found == app.books, f"{app.name}: not what was acknowledged"


def go_on(apps: list[App], victim: Victim, tally: Tally) -> None:
    """Every context must be as it was left, and answer as if the daemon had never been killed."""
    for app in apps:
        with Client(victim.socket, app=app.name) as client:
            assert {info.id for info in client.contexts()} == app.books.keys()
            for id, book in app.books.items():
                app.compare(client, id, book)
            app.say_everywhere(client)
            counts = client.stats()["counts"]
    tally.from_disk += counts["tokens_from_disk"]
    tally.recomputed += counts["tokens_recomputed"]
    assert counts["chunks_damaged"] == 0


def kill_again_and_again(root: Path, kills: int, seed: int, *, recurrent: bool = False) -> Tally:
    """``recurrent``: the engine's sequences cannot be cut, so whole states are kept, and nothing is coded."""
    rng = random.Random(seed)
    data, copy = root / "data", root / "copy"
    files = adapter_files(root / "adapters", ("red", "blue"))
    oracle = partial(ORACLE, adapters=files)
    apps = [App(f"app{i}", seed * 1000 + i, oracle, adapters=tuple(files)) for i in range(APPS)]
    known = ["--adapters", *map(str, files.values()), *(["--recurrent"] if recurrent else [])]
    sites = [site for site in SITES if not recurrent or site not in (*STAGES, *RARE)]
    tally = Tally()
    for n in range(kills):
        site = sites[(n // 2 + seed) % len(sites)] if n % 2 else ""
        after, delay = rng.randint(1, 12), rng.uniform(0.2, 1.2)
        after = 1 if site in RARE else after
        print(f"seed {seed}, kill {n}: " + (f"inside {site} {after}" if site else f"after {delay:.2f} s"))
        options = ["--die-at", site, "--die-after", str(after)] if site else []
        bits = "6.0" if site in STAGES else "16" if n % 4 == 3 else "4"
        victim = start(data, root / "s", "--bits", bits, *known, *options)
        work_until_killed(apps, victim, None if site else delay)
        tally.kills += 1
        tally.sites.append(site)

        shutil.copytree(data, copy)  # opening a store cleans it up; the daemon must find what the kill left
        with Store(copy, master=MASTER) as store:
            for app in apps:
                reconcile(app, stored(store, app), tally)
            assert store.check().problems == ()
            assert store.stats().damaged == 0
        shutil.rmtree(copy)

        survivor = start(data, root / "s", *known)
        try:
            go_on(apps, survivor, tally)
        finally:
            code = survivor.end(signal.SIGTERM)
        assert (code, survivor.said) == (0, [])  # the daemon checks its books and its store when it ends
    tally.acknowledged = sum(app.acknowledged for app in apps)
    return tally


def verdict(tally: Tally) -> None:
    print(tally)
    assert tally.acknowledged > 20 * tally.kills
    assert tally.interrupted >= tally.kills, "the kills came when nothing was under way"
    assert tally.from_disk > 1000


def test_every_acknowledged_turn_survives_kill_9_of_the_daemon(tmp_path: Path) -> None:
    verdict(kill_again_and_again(tmp_path, int(os.environ.get("LLMAAS_KILLS", "4")), seed=1))


def test_every_acknowledged_turn_survives_where_whole_states_are_kept(tmp_path: Path) -> None:
    verdict(kill_again_and_again(tmp_path, 2, seed=3, recurrent=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_acknowledged_turn_survives_fifty_kills_of_the_daemon(tmp_path: Path) -> None:
    tally = kill_again_and_again(tmp_path, 50, seed=2)
    verdict(tally)
    assert set(tally.sites) == {"", *SITES}
    assert tally.done_all_the_same > 0, "no kill came between a commit and its reply"


# -- llmaas serve


def start_real(root: Path, model: Path) -> subprocess.Popen[bytes]:
    """``llmaas serve`` on a model; returns when it answers."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LLMAAS_", "XDG_"))}
    flags = [
        "--model",
        model,
        "--socket",
        root / "s",
        "--data-dir",
        root / "data",
        "--cells",
        "1024",
        "--threads",
        "1",
        "--log-level",
        "error",
    ]
    command = [sys.executable, "-m", "llmaas", "serve", *map(str, flags)]
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environ | {"HOME": str(root)}, stdout=log, stderr=log)
    late = time.monotonic() + 60
    while True:
        try:
            Client(root / "s", app="a").close()
            return process
        except NotServing:
            assert process.poll() is None and time.monotonic() < late, (root / "log").read_text("utf-8")
            time.sleep(0.05)


def until_on_disk(client: Client) -> None:
    """Return when all that is kept of contexts is on DISK."""
    late = time.monotonic() + 60
    while not client.stats()["counts"]["chunks_written"]:
        assert time.monotonic() < late, client.stats()
        time.sleep(0.05)


def ask(client: Client, name: str, text: str) -> str:
    stream = client.generate(name, [{"role": "user", "content": text}], max_tokens=12)
    assert stream.done.n_generated
    return stream.text


@pytest.mark.parametrize("kind", ["rows", "states"])
def test_llmaas_serve_with_a_real_model_survives_kill_9(tmp_path: Path, model_path: Path, kind: str) -> None:
    """``states``: of a hybrid model, whose sequences cannot be cut."""
    model = model_path if kind == "rows" else write_hybrid(tmp_path / "m.gguf")
    process = start_real(tmp_path, model)
    try:
        with Client(tmp_path / "s", app="a") as client:
            client.create(name="c", system="You are a poet.")
            ask(client, "c", "Tell me of the sea. " * 12)
            before = client.show("c")
            until_on_disk(client)
            stream = client.generate("c", [{"role": "user", "content": "Go on."}], max_tokens=400)
            next(stream)
            process.kill()
            with pytest.raises(NotServing):
                _ = stream.done
        process.wait()
        key = master_key.find(tmp_path / "data", master_key.FILE, {}, make=False)
        assert key is not None
        with Store(tmp_path / "data", master=key.key) as store:
            assert store.check().problems == ()
            assert len(store.tokens(before.info.id)) == before.info.n_tokens
        process = start_real(tmp_path, model)
        with Client(tmp_path / "s", app="a") as client:
            after = client.show("c")
            assert (after.info.n_tokens, after.messages) == (before.info.n_tokens, before.messages)
            answer = ask(client, "c", "And of the wind?")
            counts = client.stats()["counts"]
            kept = counts["tokens_from_disk"] + counts["tokens_from_cells"]  # there if they were read before their turn
            assert kept >= (64 if kind == "rows" else before.info.n_tokens - 1)
            assert client.show("c").messages[-1].content == answer
        process.terminate()
        assert process.wait(60) == 0
        assert (tmp_path / "log").read_text("utf-8") == ""
    finally:
        process.kill()
        process.wait()
