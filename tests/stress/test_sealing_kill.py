"""kill -9 while the conversations of a store are being encrypted: none is lost, and in the end none is in clear.

As a program this file is the victim, with the name of what it does. ``steps`` opens copies of a store in clear with a
key, each in a child process that is killed before its n-th statement, until one child gets to the end. ``open`` opens
one store, and is killed from outside at some moment.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from llmaas.kvchunks.store import seal_contexts
from llmaas.kvchunks.store.store import KeyedTurn, MasterKey, Span, Store
from llmaas.kvchunks.store.tokens import pack
from llmaas.records import ContextId
from tests.stress.test_migration_kill import Deadly
from tests.support.store_data import glue, row

MASTER = MasterKey(bytes(32))
KILLS = int(os.environ.get("LLMAAS_KILLS", "5"))


def conversation(i: int, n: int) -> list[Span]:
    rng = random.Random(i)
    return [
        Span(tuple(rng.choices(range(1 << 24, 1 << 31), k=n)), "user", f"the secret of {i} is {rng.random()} " * n)
        for _ in range(3)
    ]


def fill(root: Path, contexts: int, n: int) -> None:
    """A store in clear, with many rows that have moved between pages."""
    with Store(root) as store:
        for i in range(contexts):
            store.create_context(row(f"{i:016x}", f"private {i}"), [glue(1, 2)])
        for i in range(contexts):
            turn = KeyedTurn(f"the key of {i}", bytes(16), 1, 2 + 3 * n, b"the result " * 3)
            store.append(ContextId(f"{i:016x}"), conversation(i, n), expect=2, now=11.0, turn=turn)


def check(root: Path, contexts: int, n: int) -> None:
    """Opened with its key, the store is whole; then nothing of it is in clear."""
    with Store(root, master=MASTER) as store:
        assert store.check().problems == ()
        assert [found.name for found in store.contexts()] == [f"private {i}" for i in range(contexts)]
        for i in range(contexts):
            ctx = ContextId(f"{i:016x}")
            assert store.spans(ctx) == [glue(1, 2), *conversation(i, n)]
            turn = store.turn(ctx, f"the key of {i}")
            assert turn is not None and turn.result == b"the result " * 3
        assert (store.encryption().sealed, store.encryption().open) == (contexts, 0)
    held = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert not any(trace in held for trace in (b"secret of", b"private ", b"the key of", b"the result"))
    assert not any(pack(span.tokens[:3]) in held for i in range(contexts) for span in conversation(i, n))


def is_in_clear(root: Path) -> int:
    """How many conversations are."""
    with closing(sqlite3.connect(root / "index.sqlite")) as con:
        return int(con.execute("SELECT count(*) FROM contexts WHERE text_key IS NULL").fetchone()[0])


def start(*arguments: str) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in [str(Path(__file__).parents[2]), *sys.path] if p)}
    return subprocess.Popen([sys.executable, __file__, *arguments], env=env, stdout=subprocess.PIPE)


def kill_at_each_statement(old: Path, copies: Path) -> None:
    seal_contexts.CONTEXTS_AT_ONCE = 1
    n, status = 0, 1
    while status:
        n += 1
        root = copies / f"{n}"
        shutil.copytree(old, root)
        child = os.fork()
        if not child:
            Store(root, master=MASTER, files=Deadly(n)).close()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)


def test_a_kill_at_any_statement_leaves_each_conversation_in_clear_or_encrypted_and_whole(tmp_path: Path) -> None:
    fill(tmp_path / "old", 3, 4)
    with start("steps", str(tmp_path / "old"), str(tmp_path / "copies")) as victim:
        assert victim.wait() == 0
    roots = list((tmp_path / "copies").iterdir())
    left = {is_in_clear(shutil.copytree(root, tmp_path / "look" / root.name)) for root in roots}
    assert len(roots) > 40 and left == {0, 1, 2, 3}
    for root in roots:
        check(root, 3, 4)


@pytest.mark.parametrize("seed", range(KILLS))
def test_kills_at_random_moments_only_delay_it(tmp_path: Path, seed: int) -> None:
    rng, root = random.Random(seed), tmp_path / "store"
    fill(root, 200, 200)
    kills, longest = 0, 0.02
    while True:
        with start("open", str(root)) as victim:
            assert victim.stdout is not None and victim.stdout.read(1) == b"."
            time.sleep(rng.uniform(0.0, longest))
            victim.kill()
        if victim.returncode == 0:
            break
        kills, longest = kills + 1, longest * 1.3
    assert kills > 1
    check(root, 200, 200)


def test_a_copy_that_is_taken_at_any_moment_opens(tmp_path: Path) -> None:
    """What is on disk between two commits is a store, too."""
    fill(tmp_path / "old", 3, 4)
    with Store(tmp_path / "old", master=MASTER):
        shutil.copytree(tmp_path / "old", tmp_path / "copy")
    check(tmp_path / "copy", 3, 4)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["steps", old, copies]:
            kill_at_each_statement(Path(old), Path(copies))
        case ["open", root]:
            os.write(1, b".")
            Store(Path(root), master=MASTER).close()
