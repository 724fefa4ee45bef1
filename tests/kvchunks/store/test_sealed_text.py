"""Text at rest: no file of a store with a master key holds what was said, and nobody reads it without the key."""

from __future__ import annotations

import errno
import random
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from llmaas.errors import ContextDamaged, ContextExists, MachineError, UnknownContext
from llmaas.kvchunks.store.store import Files, KeyedTurn, MasterKey, MasterKeyMissing, ModelName, Span, Store
from llmaas.kvchunks.store.tokens import pack
from llmaas.records import ContextId
from tests.support.damaged_store import MASTER, copy_store, fill, listening, read, repaired
from tests.support.store_data import BIG, NOISE, A, B, data, glue, key, row
from tests.support.troubled_files import Trouble, TroubledFiles

OTHER = MasterKey(b"o" * 32)
SPANS = [glue(1, 2), Span((3, 4, 5), "user", "hello there"), Span((), "user", ""), Span((6,), "assistant", "hi")]


def index(root: Path, sql: str, *values: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        return con.execute(sql, values).fetchall()


# -- what must be in no file


_TRACE_BYTES = 12
"""So much of a trace is enough: three tokens, or a word and seven digits."""


class Secrets:
    """Conversations that nobody else has, and the traces that they would leave in files."""

    def __init__(self) -> None:
        self._rng = random.Random(7)
        self._traces: list[bytes] = []

    def _secret(self, what: str) -> str:
        text = f"{what} {self._rng.randrange(1 << 60):x}"
        self._traces.append(text.encode())
        return text

    def name(self) -> str:
        return self._secret("name")

    def spans(self, n: int = 2, size: int = 40) -> list[Span]:
        return [self._span(role, size) for _ in range(n) for role in ("user", "assistant")]

    def _span(self, role: str, size: int) -> Span:
        tokens = tuple(self._rng.randrange(1 << 24, 1 << 31) for _ in range(size))
        self._traces += [pack(tokens[i : i + 3]) for i in range(0, size - 2, 3)]
        return Span(tokens, role, " ".join(self._secret("text") for _ in range(size // 10)))

    def turn(self, n_tokens: int) -> KeyedTurn:
        request = self._rng.randbytes(16)
        self._traces.append(request)
        result = self._secret("result").encode()
        return KeyedTurn(self._secret("key"), request, 1, n_tokens, result)

    def found(self, root: Path) -> int:
        """How many traces are in files."""
        wanted, found = {trace[:_TRACE_BYTES] for trace in self._traces}, set()
        for path in root.rglob("*"):
            if path.is_file():
                held = path.read_bytes()
                found |= wanted & {held[i : i + _TRACE_BYTES] for i in range(len(held))}
        return len(found)


def live(store: Store, secrets: Secrets, look: Callable[[], object], contexts: int = 9) -> None:
    """Everything that is done to conversations; ``look`` is called after each thing."""
    ids = [ContextId(f"{i:016x}") for i in range(contexts)]
    for ctx in ids:
        store.create_context(row(ctx, secrets.name()), secrets.spans(1))
        look()
    for turn in range(3):
        for ctx in ids:
            spans, n = secrets.spans(1, 10 + 37 * turn), len(store.tokens(ctx))
            total = n + sum(len(span.tokens) for span in spans)
            store.append(ctx, spans, expect=n, now=11.0, turn=secrets.turn(total))
        look()
    for i, ctx in enumerate(ids[::3]):
        store.fork(ctx, row(f"{i + 100:016x}", secrets.name()))
        store.truncate(ctx, 150, 12.0)
        look()
    for ctx in ids[1::3]:
        expect = len(store.tokens(ctx))
        store.rewrite(ctx, secrets.spans(3), expect=expect, now=13.0, model=ModelName("other", "vocab-2"))
        look()
    for ctx in ids[2::3]:
        store.put(ctx, BIG if ctx == ids[2] else [(key(ctx), 64, data(1, 500))])
        store.delete_context(ctx)
        look()
    store.rename_vocab("vocab-2", "vocab-3")
    store.put(ids[0], BIG)
    store.discard([name for name, _, _ in BIG[1:]])
    look()
    assert store.check().problems == ()


def told(store: Store) -> list[object]:
    return [(context, store.spans(context.id)) for context in store.contexts()]


def test_nothing_that_was_said_is_in_any_file(root: Path) -> None:
    secrets = Secrets()

    def look() -> None:
        assert not secrets.found(root)

    with Store(root, master=MASTER, wal_limit=64 << 10) as store:
        live(store, secrets, look)
        before = told(store)
    look()
    spoilt = bytearray((root / "index.sqlite").read_bytes())
    spoilt[3 * 4096 : 4 * 4096] = NOISE[:4096]
    (root / "index.sqlite").write_bytes(spoilt)
    assert Store.repair_index(root) is not None
    look()
    with Store(root, master=MASTER) as store:
        assert told(store) == before
    look()


# -- what was in clear


def test_a_store_in_clear_is_encrypted_when_it_is_opened_with_a_key(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = Secrets()
    with Store(root, wal_limit=64 << 10) as store:
        live(store, secrets, lambda: None, 60)
        before, summaries = told(store), store.summaries()
        keys = [
            row[0] for row in index(root, "SELECT key FROM turns WHERE result IS NOT NULL ORDER BY context, number")
        ]
    assert secrets.found(root) > 1000
    caplog.set_level("INFO")
    with Store(root, master=MASTER) as store:
        assert not secrets.found(root), "not even while it is open"
        assert told(store) == before and store.summaries() == summaries
        assert store.check().problems == ()
        assert (store.encryption().sealed, store.encryption().open) == (len(before), 0)
        found = [store.turn(context.id, str(name)) for context in store.contexts() for name in keys]
        assert len([turn for turn in found if turn]) == len(keys) > 10
    assert not secrets.found(root)
    assert "60 conversations are encrypted" in caplog.text
    caplog.clear()
    before_again = (root / "index.sqlite").read_bytes()
    with Store(root, master=MASTER) as store:
        assert told(store) == before
    assert caplog.text == "" and (root / "index.sqlite").read_bytes() == before_again


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_fault_while_it_is_encrypted_loses_nothing_and_the_next_opening_goes_on(memory: Path, code: int) -> None:
    secrets, old = Secrets(), memory / "old"
    with Store(old) as store:
        live(store, secrets, lambda: None, 3)
        before = told(store)
    calm = Trouble(code, at=1 << 60)
    Store(copy_store(old, memory / "calm"), master=MASTER, files=TroubledFiles(calm)).close()
    for n in range(1, calm.sites + 1, 5):
        for stays in (False, True):
            trouble, root = Trouble(code, n, stays=stays), copy_store(old, memory / "new")
            with suppress(MachineError), Store(root, master=MASTER, files=TroubledFiles(trouble)) as store:
                assert told(store) == before
            with Store(root, master=MASTER) as store:
                assert told(store) == before and store.encryption().open == 0
                assert store.check().problems == ()
            assert not secrets.found(root), f"site {n}"


class NoRoom(Files):
    def room(self, folder: Path) -> int:
        return 1 << 20


def test_without_room_to_write_the_index_anew_that_is_said_and_done_later(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row(A), SPANS)
    page = 4096 * (index(root, "SELECT rootpage FROM sqlite_master WHERE name = 'spans'")[0][0] - 1)  # type: ignore
    with (root / "index.sqlite").open("r+b") as file:
        file.seek(page + 8 + 2 * len(SPANS) + 100)
        file.write(b"what a row that was moved left behind")
    with listening() as heard, Store(root, master=MASTER, files=NoRoom()) as store:
        assert store.spans(A) == SPANS and store.encryption().open == 0
    assert "no room" in heard[0] and b"left behind" in (root / "index.sqlite").read_bytes()
    with listening() as heard, Store(root, master=MASTER) as store:
        assert store.spans(A) == SPANS
        assert store.check().problems == ()
    assert heard == [] and b"left behind" not in (root / "index.sqlite").read_bytes()


def test_of_an_index_that_was_written_anew_a_damaged_first_page_costs_no_conversation(memory: Path) -> None:
    fill(memory / "store", master=None, contexts=8)
    whole = read(memory / "store")
    assert read(memory / "store").content() == whole.content()
    with (memory / "store" / "index.sqlite").open("r+b") as file:
        file.write(bytes(4096))
    after, said = repaired(memory / "store")
    assert (after.shown, after.rows) == (whole.shown, whole.rows)
    assert after.adapters == whole.adapters or "adapter" in said


def test_a_conversation_that_is_damaged_stays_in_clear_is_said_and_is_encrypted_after_its_repair(root: Path) -> None:
    with Store(root) as store:
        for ctx in (A, B):
            store.create_context(row(ctx), SPANS)
    index(root, "UPDATE spans SET text = 'something else' WHERE id = 4")
    with listening() as heard, Store(root, master=MASTER) as store:
        assert (store.encryption().sealed, store.encryption().open) == (1, 1)
        assert store.spans(B) == SPANS
        with pytest.raises(ContextDamaged, match="'name of a'"):
            store.spans(A)
        for ctx, name in (("c", "name of a"), ("c", "name of b"), ("a", "c")):
            with pytest.raises(ContextExists):
                store.create_context(row(ctx, name))
        with pytest.raises(UnknownContext):
            store.spans(ContextId("c"))
    assert len(heard) == 1 and "1 conversations" in heard[0] and "doctor --repair" in heard[0]
    assert Store.repair_index(root, master=MASTER) is not None
    with listening() as heard, Store(root, master=MASTER) as store:
        assert (store.spans(A), store.spans(B)) == (SPANS[:3], SPANS)
        assert (store.encryption().sealed, store.encryption().open) == (2, 0)
        assert store.check().problems == ()
    assert heard == []


def test_flipped_bits_are_put_right_when_a_conversation_is_encrypted(root: Path) -> None:
    with Store(root) as store:
        for ctx in (A, B):
            store.create_context(row(ctx), SPANS)
            store.append(ctx, [glue(9)], expect=6, now=1.0, turn=KeyedTurn("k", bytes(16), 1, 7, b"told" * 9))
    index(root, "UPDATE spans SET text = 'hello thera' WHERE id = 2")
    index(root, "UPDATE contexts SET model = 'diny' WHERE id = 'b'")
    index(root, "UPDATE turns SET result = x'00' WHERE context = 2")
    with Store(root, master=MASTER) as store:
        assert store.spans(A) == store.spans(B) == [*SPANS, glue(9)]
        assert [context.model for context in store.contexts()] == ["tiny", "tiny"]
        assert store.turn(A, "k") is not None and store.turn(B, "k") is None, "what is damaged is forgotten"
        assert store.check().problems == ()


# -- without the key


def test_without_its_key_a_store_does_not_open_and_nothing_is_changed(root: Path, tmp_path: Path) -> None:
    with Store(root, master=MASTER) as store:
        store.create_context(row(A), SPANS)
        store.put(A, BIG)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for master, why in ((None, "not there, or encryption is turned off"), (OTHER, "another one than theirs")):
        with pytest.raises(MasterKeyMissing, match=why) as caught:
            Store(root, master=master)
        assert "LLMAAS_MASTER_KEY" in caught.value.hint and str(root) in caught.value.message
        assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    with Store(root, master=MASTER) as store:
        assert store.spans(A) == SPANS
        store.delete_context(A)
    Store(root, master=OTHER).close()  # there is nothing that it would have to open


def test_a_repair_without_the_key_keeps_every_conversation(memory: Path) -> None:
    fill(memory / "store", contexts=8)
    whole = read(memory / "store")
    index(memory / "store", "UPDATE contexts SET vocab = 'other' WHERE num = 2")
    index(memory / "store", "UPDATE spans SET context = 77 WHERE id = (SELECT max(id) FROM spans WHERE context = 3)")
    found = Store.repair_index(memory / "store")
    assert found is not None and (found.contexts, found.shortened, found.lost) == (9, (), 0)
    assert [mended.name for mended in found.mended] == ["(encrypted)"] * 2
    again = read(memory / "store")
    assert again.shown == whole.shown and again.said == ""


# -- keys


def test_a_fork_has_a_key_of_its_own_and_outlives_its_origin(root: Path) -> None:
    with Store(root, master=MASTER) as store:
        store.create_context(row(A), SPANS)
        store.fork(A, row(B))
        rows: Sequence[tuple[object, ...]] = index(root, "SELECT text_key FROM contexts")
        assert len({key for (key,) in rows}) == 2
        spans = index(root, "SELECT tokens FROM spans WHERE tokens <> x''")
        assert len(set(spans)) == 2 * 3, "nothing shows that the two say the same"
        store.delete_context(A)
        assert store.spans(B) == SPANS
        assert index(root, "SELECT id FROM text_keys") == [("b",)]


def test_contexts_of_one_name_are_told_apart_by_their_apps(root: Path) -> None:
    with Store(root, master=MASTER) as store:
        store.create_context(row("a", "same", "1000/one"))
        store.create_context(row("b", "same", "1000/two"))
        with pytest.raises(ContextExists):
            store.create_context(row("c", "same", "1000/two"))
        assert [context.name for context in store.contexts()] == ["same", "same"]
    names: Sequence[tuple[object, ...]] = index(root, "SELECT name FROM contexts")
    assert len(set(names)) == 2, "that they have the same name cannot be seen"


def test_a_repaired_index_has_the_copies_of_all_keys(memory: Path) -> None:
    fill(memory / "store", contexts=4)
    index(memory / "store", "DELETE FROM text_keys")
    index(memory / "store", "UPDATE contexts SET vocab = 'other' WHERE num = 2")
    assert repaired(copy_store(memory / "store", memory / "copy"))[0].said == ""
    assert index(memory / "copy", "SELECT count(*) FROM text_keys") == [(5,)]
