"""Stores whose files were damaged while they were closed, and what may be made of them: the same, or said."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llmaas.cli.doctor.damage import explain_salvage
from llmaas.errors import LlmaasError, StoreFailed
from llmaas.kvchunks.codec.header import HEADER_BYTES, write_header
from llmaas.kvchunks.store.store import AdapterRow, ContextRow, KeyedTurn, MasterKey, Span, Store
from llmaas.records import ChunkKey, ChunkMeta, ChunkSensitivity, ContextId, Geometry, Precision
from tests.support.store_data import key, row

MASTER = MasterKey(bytes(32))
Shown = dict[tuple[str, str], list[Span]]
"""Conversations by the name under which they are shown."""


def coded_chunk(name: ChunkKey, size: int) -> bytes:
    """A coded chunk of so many bytes that nobody can decode, but everybody can check."""
    payload = bytearray(HEADER_BYTES) + random.Random(name).randbytes(size - HEADER_BYTES)
    geometry = Geometry(n_layer=1, k_dim=2, v_dim=2, head_dim_k=2, head_dim_v=2)
    write_header(
        payload,
        precision=Precision(4, 4),
        codings=(4, 4),
        sinks=0,
        rope_id=0,
        key=name,
        n_tokens=64,
        geometry=geometry,
    )
    return bytes(payload)


def conversation(i: int) -> list[Span]:
    """About 1 KiB, and one in four much longer."""
    rng = random.Random(i)
    words = " ".join(f"w{rng.randrange(5000)}" for _ in range(60)) + " \N{SNOWMAN}"
    long = 12 if i % 4 == 0 else 1
    return [
        Span(tuple(rng.choices(range(49152), k=9)), "system", "Be brief."),
        Span(tuple(rng.choices(range(49152), k=90 * long)), "user", words * long),
        Span((1, 2)),
        Span(tuple(rng.choices(range(49152), k=70)), "assistant", words[:200], open=True),
    ]


def fill(root: Path, *, master: MasterKey | None = MASTER, contexts: int = 24) -> None:
    """A store with contexts of three apps, forks, chunks and adapters; closed again."""
    with Store(root, master=master) as store:
        for i in range(contexts):
            ctx = row(f"{i:016x}", f"talk {i}", f"1000/app{i % 3}")
            store.create_context(ctx, conversation(i)[:2])
            store.append(ctx.id, conversation(i)[2:], expect=sum(len(s.tokens) for s in conversation(i)[:2]), now=10.5)
        store.fork(ContextId(f"{1:016x}"), row("f" * 16, "a fork", "1000/app1"))
        for i in range(4):
            names = [key((i, j)) for j in range(6)]
            meta = ChunkMeta(Precision(4, 3), ChunkSensitivity(0.1, 0.2, 0.3, 4.5, 200 + i))
            store.put(
                ContextId(f"{i:016x}"),
                [(name, 64, coded_chunk(name, 400 + 10 * j)) for j, name in enumerate(names)],
                dict.fromkeys(names[:4], meta),
            )
        for i in range(4):  # also idempotency keys
            ctx = ContextId(f"{i:016x}")
            turn = KeyedTurn(f"turn {i}", bytes(16), 0, len(store.tokens(ctx)), b"told " * 9)
            store.append(ctx, [], expect=turn.n_tokens, now=10.5, turn=turn)
        store.adapters.save(AdapterRow("terse", "/adapters/terse.gguf", "0123456789abcdef"))


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def copy_store(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


@dataclass(slots=True)
class Reading:
    """What was found in a store, and what was said about it meanwhile."""

    shown: Shown = field(default_factory=dict)
    rows: dict[tuple[str, str], ContextRow] = field(default_factory=dict)
    adapters: list[AdapterRow] = field(default_factory=list)
    said: str = ""
    opened: bool = True

    def of(self, name: tuple[str, str]) -> tuple[ContextRow | None, list[Span] | None]:
        return self.rows.get(name), self.shown.get(name)

    def content(self) -> object:
        return self.shown, self.rows, self.adapters


@contextmanager
def listening() -> Iterator[list[str]]:
    """What is logged as a warning or worse in the block."""
    heard: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    handler, logger = Handler(logging.WARNING), logging.getLogger("llmaas")
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)


def read(root: Path) -> Reading:
    """Open the store and read every conversation, as the service does at its start."""
    found = Reading()
    with listening() as heard:
        try:
            with Store(root, master=MASTER) as store:
                for context in store.contexts():
                    name = (context.app, context.name)
                    try:
                        found.shown[name] = store.spans(context.id)
                        found.rows[name] = context
                    except StoreFailed as error:
                        heard.append(error.message)
                list(store.chunks())
                found.adapters = store.adapters.all()
        except LlmaasError as error:
            found.opened = False
            heard.append(f"{error.message} {error.hint}")
    found.said = "\n".join(heard)
    return found


def repaired(root: Path) -> tuple[Reading, str]:
    """What is found after what 'llmaas doctor --repair' does, and what that says."""
    told: list[str] = []
    if (found := Store.repair_index(root, master=MASTER)) is not None:
        told += explain_salvage(found)
    with listening() as heard, Store(root, master=MASTER) as store:
        told += store.check(repair=True).problems
        assert not store.check().problems
    return read(root), "\n".join([*told, *heard])
