"""kill -9 at random moments: what the store acknowledged is there when it is opened again.

As a program this file is the victim: two threads use one store and report on stdout what they are about to do and what
was acknowledged. The parent kills it, opens the store and compares it with the reports. There are five kills by
default, as many as the environment variable LLMAAS_KILLS says, or 50 with the marker ``slow``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llmaas.kvchunks.store.store import ContextRow, MasterKey, Span, Store
from llmaas.records import AppId, ChunkKey, ContextId

WORKERS = 2
KEYS = 24
WAL_LIMIT = 64 * 1024


def key(worker: int, i: int) -> ChunkKey:
    return ChunkKey(hashlib.blake2b(f"{worker}.{i}".encode(), digest_size=16).digest())


def data(worker: int, i: int, version: int) -> bytes:
    """5 to 300 KB that no other version of this chunk has."""
    rng = random.Random(f"{worker}.{i}.{version}")
    return rng.randbytes(rng.choice([5_000, 50_000, 300_000]))


def row(ctx: str) -> ContextRow:
    return ContextRow(ContextId(ctx), AppId("1000/stress"), ctx, "tiny", "vocab", 0.0, 0.0, 0)


# -- the victim


class Worker:
    """Random operations on contexts and keys that no other worker touches."""

    def __init__(self, number: int, store: Store, seed: int) -> None:
        self.number, self.store = number, store
        self.rng = random.Random(seed)
        mine = [c for c in store.contexts() if c.id.startswith(f"{number}-")]
        self.lengths = {c.id: c.n_tokens for c in mine}
        held = {k for k, *_ in store.chunks()}
        self.held = {i for i in range(KEYS) if key(number, i) in held}

    def say(self, **what: Any) -> None:
        os.write(1, (json.dumps({"worker": self.number} | what) + "\n").encode())  # under PIPE_BUF: never in parts

    def run(self) -> None:
        calls = (
            [self.append] * 4
            + [self.put] * 3
            + [self.create, self.fork, self.truncate, self.rewrite, self.delete, self.discard]
        )
        while True:
            self.rng.choice(calls)()

    def create(self) -> None:
        if len(self.lengths) < 5:
            self.make("create", f"{self.number}-{self.rng.randrange(1 << 40)}", None)

    def fork(self) -> None:
        if self.lengths and len(self.lengths) < 5:
            self.make("fork", f"{self.number}-{self.rng.randrange(1 << 40)}", self.some())

    def make(self, do: str, ctx: str, src: ContextId | None) -> None:
        self.say(do=do, ctx=ctx, src=src)
        if src is None:
            self.store.create_context(row(ctx))
        else:
            self.store.fork(src, row(ctx))
        self.say(done=True)
        self.lengths[ContextId(ctx)] = self.lengths[src] if src else 0

    def some(self) -> ContextId:
        return self.rng.choice(sorted(self.lengths))

    def append(self) -> None:
        if self.lengths:
            ctx = self.some()
            tokens = [self.rng.randrange(1 << 31) for _ in range(self.rng.randrange(1, 40))]
            self.say(do="append", ctx=ctx, tokens=tokens)
            spans = [Span(tuple(tokens[:3])), Span(tuple(tokens[3:]), "user", "x" * len(tokens))]
            self.lengths[ctx] = self.store.append(ctx, spans, expect=self.lengths[ctx], now=1.0)
            self.say(done=True)

    def rewrite(self) -> None:
        if self.lengths:
            ctx = self.some()
            tokens = [self.rng.randrange(1 << 31) for _ in range(self.rng.randrange(1, 40))]
            self.say(do="rewrite", ctx=ctx, tokens=tokens)
            self.store.rewrite(
                ctx, [Span(tuple(tokens[:9])), Span(tuple(tokens[9:]))], expect=self.lengths[ctx], now=1.0
            )
            self.say(done=True)
            self.lengths[ctx] = len(tokens)

    def truncate(self) -> None:
        if self.lengths:
            ctx = self.some()
            to = self.rng.randint(0, self.lengths[ctx])
            self.say(do="truncate", ctx=ctx, to=to)
            self.store.truncate(ctx, to, 1.0)
            self.say(done=True)
            self.lengths[ctx] = to

    def delete(self) -> None:
        if len(self.lengths) > 2:
            ctx = self.some()
            self.say(do="delete", ctx=ctx)
            self.store.delete_context(ctx)
            self.say(done=True)
            del self.lengths[ctx]

    def put(self) -> None:
        new = self.rng.sample([i for i in range(KEYS) if i not in self.held], min(6, KEYS - len(self.held)))
        version = self.rng.randrange(1 << 30)
        items = [(key(self.number, i), 64, data(self.number, i, version)) for i in new]
        self.say(do="put", keys=new, version=version)
        self.store.put(ContextId(f"{self.number}"), items)
        self.say(done=True)
        self.held |= set(new)

    def discard(self) -> None:
        old = self.rng.sample(sorted(self.held), len(self.held) * 3 // 4)
        self.say(do="discard", keys=old)
        self.store.discard([key(self.number, i) for i in old])
        self.say(done=True)
        self.held -= set(old)


def victim(root: Path, seed: int) -> None:
    store = Store(root, master=MasterKey(bytes(32)), wal_limit=WAL_LIMIT)
    workers = [Worker(n, store, seed * WORKERS + n) for n in range(WORKERS)]
    for thread in [threading.Thread(target=w.run) for w in workers]:
        thread.start()


# -- the parent


class Model:
    """The contexts and chunks of one worker after its acknowledged operations."""

    def __init__(self) -> None:
        self.contexts: dict[str, list[int]] = {}
        self.chunks: dict[int, int] = {}
        """Key number -> version."""

    def apply(self, op: dict[str, Any]) -> Model:
        after = Model()
        after.contexts, after.chunks = dict(self.contexts), dict(self.chunks)
        ctx = op.get("ctx", "")
        if op["do"] in ("create", "fork"):
            after.contexts[ctx] = self.contexts[op["src"]] if op["src"] else []
        elif op["do"] == "append":
            after.contexts[ctx] = self.contexts[ctx] + op["tokens"]
        elif op["do"] == "rewrite":
            after.contexts[ctx] = op["tokens"]
        elif op["do"] == "truncate":
            after.contexts[ctx] = self.contexts[ctx][: op["to"]]
        elif op["do"] == "delete":
            del after.contexts[ctx]
        elif op["do"] == "put":
            after.chunks |= dict.fromkeys(op["keys"], op["version"])
        else:
            after.chunks = {i: v for i, v in self.chunks.items() if i not in op["keys"]}
        return after

    def matches(self, worker: int, store: Store) -> bool:
        contexts = {c.id: list(store.tokens(c.id)) for c in store.contexts() if c.id.startswith(f"{worker}-")}
        views = store.get([key(worker, i) for i in range(KEYS)])
        want = [data(worker, i, self.chunks[i]) if i in self.chunks else None for i in range(KEYS)]
        return contexts == self.contexts and all(
            (view is None) == (blob is None) and (view is None or view == blob)
            for view, blob in zip(views, want, strict=True)
        )


def run_and_kill(root: Path, seed: int, delay: float) -> list[list[dict[str, Any]]]:
    """Each worker's reports until the kill, which comes ``delay`` seconds after the first report."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, __file__, str(root), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as child:
        assert child.stdout and child.stderr
        lines = [child.stdout.readline()]
        reader = threading.Thread(target=lambda: lines.extend(child.stdout or []))
        reader.start()
        time.sleep(delay)
        child.kill()
        reader.join()
        assert child.wait() == -9, child.stderr.read().decode()
        assert child.stderr.read() == b""
    said = [json.loads(line) for line in lines]
    return [[s for s in said if s["worker"] == n] for n in range(WORKERS)]


def kill_again_and_again(root: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    models = [Model() for _ in range(WORKERS)]
    acknowledged = interrupted = 0
    for n in range(kills):
        reports = run_and_kill(root, seed=seed * 1000 + n, delay=rng.uniform(0.0, 0.4))
        with Store(root, master=MasterKey(bytes(32)), wal_limit=WAL_LIMIT) as store:
            for worker, said in enumerate(reports):
                for op, _ in zip(said[::2], said[1::2], strict=False):
                    models[worker] = models[worker].apply(op)
                acknowledged += len(said) // 2
                if len(said) % 2:  # this operation was under way: all of it or nothing
                    interrupted += 1
                    whole = models[worker].apply(said[-1])
                    if whole.matches(worker, store):
                        models[worker] = whole
                assert models[worker].matches(worker, store), f"seed {seed}, kill {n}, worker {worker}: {said[-1:]}"
            assert store.check().problems == ()
            assert store.stats().damaged == 0
    assert acknowledged > 5 * kills
    assert interrupted > 0


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "store", int(os.environ.get("LLMAAS_KILLS", "5")), seed=1)


@pytest.mark.slow
def test_what_was_acknowledged_survives_fifty_kills(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "store", 50, seed=2)


if __name__ == "__main__":
    victim(Path(sys.argv[1]), int(sys.argv[2]))
