"""What is private on disk: chunks that open under their context's key only, and keys that go when they should."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from llmaas.kvchunks.store.cipher import AES, CIPHERS, KEY_BYTES, OVERHEAD, CipherKey, MasterKey
from llmaas.kvchunks.store.store import Files, Span, Store
from llmaas.kvchunks.tiering.disk_reader import to_be_kept
from llmaas.records import ChunkKey, ContextId
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house
from tests.support.store_data import A, B, data, key, row

MASTER, OTHER = MasterKey(bytes(KEY_BYTES)), MasterKey(b"o" * KEY_BYTES)
ITEMS = [(key(i), 64, data(i, 5000)) for i in range(4)]
KEYS = [k for k, _, _ in ITEMS]

keys_of_a_cipher = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
ciphers = st.sampled_from(sorted(CIPHERS))


def values(store: Store, keys: Sequence[ChunkKey] = KEYS) -> list[bytes | None]:
    return [None if view is None else bytes(view) for view in store.get(keys)]


def all_bytes(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def wrapped_keys(root: Path) -> dict[str, bytes]:
    con = sqlite3.connect(root / "index.sqlite")
    try:
        return dict(con.execute("SELECT context, wrapped FROM keys"))
    finally:
        con.close()


def wrapped_text_keys(root: Path) -> dict[str, bytes]:
    con = sqlite3.connect(root / "index.sqlite")
    try:
        return dict(con.execute("SELECT id, text_key FROM contexts"))
    finally:
        con.close()


# -- the cipher


@given(keys_of_a_cipher, ciphers, st.binary(max_size=300), st.binary(max_size=40))
def test_what_is_encrypted_decrypts_and_never_looks_the_same_twice(
    raw: bytes, cipher: str, text: bytes, name: bytes
) -> None:
    cipher_key = CipherKey(raw, cipher)
    one, two = cipher_key.encrypt(text, name), cipher_key.encrypt(memoryview(text), name)
    assert one != two and len(one) == len(text) + OVERHEAD
    assert CipherKey(raw, cipher).decrypt(memoryview(one), name) == cipher_key.decrypt(two, name) == text
    assert cipher_key.decrypt_chunk(memoryview(one), name) == text


@given(st.data(), keys_of_a_cipher, ciphers, st.binary(max_size=100), st.binary(max_size=20))
def test_a_flipped_bit_a_cut_another_name_or_another_key_does_not_open(
    draw: st.DataObject, raw: bytes, cipher: str, text: bytes, name: bytes
) -> None:
    cipher_key = CipherKey(raw, cipher)
    encrypted = cipher_key.encrypt(text, name)
    bit = draw.draw(st.integers(0, 8 * len(encrypted) - 1))
    flipped = bytearray(encrypted)
    flipped[bit // 8] ^= 1 << bit % 8
    other = bytes([raw[0] ^ 1]) + raw[1:]
    cut = encrypted[: draw.draw(st.integers(0, len(encrypted) - 1))]
    for decrypt in (cipher_key.decrypt, lambda data, name: cipher_key.decrypt_chunk(memoryview(data), name)):
        assert decrypt(flipped, name) is None
        assert decrypt(cut, name) is None
        assert decrypt(encrypted, name + b"x") is None
    assert CipherKey(other, cipher).decrypt(encrypted, name) is None
    assert CipherKey(other, cipher).decrypt_chunk(memoryview(encrypted), name) is None


@given(keys_of_a_cipher, ciphers, st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=4))
def test_chunks_are_encrypted_one_after_the_other_to_the_same_memory(
    raw: bytes, cipher: str, chunks: list[bytes]
) -> None:
    cipher_key, memory = CipherKey(raw, cipher), memoryview(bytearray(400))
    made = [bytes(cipher_key.encrypt_chunk(chunk, b"name", memory)) for chunk in chunks]
    assert [len(one) for one in made] == [len(chunk) + OVERHEAD for chunk in chunks]
    assert [cipher_key.decrypt(one, b"name") for one in made] == chunks


def test_a_chunk_may_be_decrypted_where_it_was_read() -> None:
    cipher_key = CipherKey(bytes(32), AES)
    encrypted = bytearray(cipher_key.encrypt(b"text" * 100, b"name"))
    damaged = bytearray(encrypted[:-1] + bytes([encrypted[-1] ^ 1]))
    chunk = cipher_key.decrypt_chunk(memoryview(encrypted), b"name", in_place=True)
    assert chunk == b"text" * 100 and chunk[:4] == bytes(encrypted[12:16])
    assert cipher_key.decrypt_chunk(memoryview(damaged), b"name", in_place=True) is None


def test_a_decrypted_chunk_is_kept_as_it_is_and_a_part_of_a_buffer_is_copied() -> None:
    cipher_key = CipherKey(bytes(32), AES)
    encrypted = cipher_key.encrypt(bytes(1000), b"name")
    chunk = cipher_key.decrypt_chunk(memoryview(encrypted), b"name")
    assert chunk is not None and to_be_kept(chunk) is chunk
    of_many = np.zeros(3000, np.uint8).data[1000:2000]
    assert isinstance(to_be_kept(of_many), bytes) and to_be_kept(of_many) == chunk
    assert to_be_kept(encrypted) is encrypted


def test_a_wrapped_key_opens_for_its_owner_and_cipher_under_its_master_only() -> None:
    cipher, wrapped, cipher_key = MASTER.make("a")
    again = MASTER.unwrap("a", cipher, wrapped)
    assert again is not None and again.decrypt(cipher_key.encrypt(b"x", b"n"), b"n") == b"x"
    other_cipher = next(c for c in CIPHERS if c != cipher)
    assert MASTER.unwrap("b", cipher, wrapped) is None
    assert MASTER.unwrap("a", other_cipher, wrapped) is None
    assert OTHER.unwrap("a", cipher, wrapped) is None


# -- the store


def test_chunks_are_not_on_disk_in_clear_and_come_back(root: Path) -> None:
    with Store(root, master=MASTER) as store:
        store.put(A, ITEMS)
        assert values(store) == [blob for _, _, blob in ITEMS]
        assert sorted(c[:3] for c in store.chunks()) == sorted((k, n, len(blob)) for k, n, blob in ITEMS), (
            "sizes are those put"
        )
        assert not any(blob[i : i + 32] in all_bytes(root) for _, _, blob in ITEMS for i in range(0, 4900, 100))
    with Store(root, master=MASTER) as store:
        assert values(store) == [blob for _, _, blob in ITEMS]
        assert store.check().problems == ()


def test_bytes_that_were_swapped_between_two_places_are_misses(root: Path) -> None:
    with Store(root, master=MASTER) as store:
        store.put(A, ITEMS)
        (path,) = (root / "payload").iterdir()
        raw, n = path.read_bytes(), 5000 + OVERHEAD
        path.write_bytes(raw[n : 2 * n] + raw[:n] + raw[2 * n :])
        with sqlite3.connect(root / "index.sqlite") as con:  # whoever can do that can do this
            sums = con.execute("SELECT offset, checksum FROM chunks ORDER BY offset").fetchall()
            con.execute("UPDATE chunks SET checksum = ? WHERE offset = 0", (sums[1][1],))
            con.execute("UPDATE chunks SET checksum = ? WHERE offset = ?", (sums[0][1], n))
        con.close()
        assert len(store.check().problems) == 2
        assert [v is None for v in values(store)] == [True, True, False, False]
        assert store.stats().damaged == 2


def test_chunks_under_another_master_key_are_misses_with_one_warning_and_the_old_one_finds_what_is_left(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store(root, master=MASTER) as store:
        store.put(A, ITEMS)
    with caplog.at_level(logging.WARNING), Store(root, master=OTHER) as store:
        assert list(store.chunks()) == list(store.chunks()) == [] and values(store) == [None] * 4
        assert (store.encryption().keys_that_fit, store.encryption().locked) == (0, 4)
        store.put(A, [(KEYS[0], 64, b"computed again")])
        assert values(store) == [b"computed again", None, None, None]
        assert store.check().problems == () and store.stats().damaged == 0
    assert [r.message for r in caplog.records] == [
        "4 chunks on disk cannot be opened: the master key is not the one they were made with; "
        "they count as missing and are recomputed"
    ]
    with Store(root, master=MASTER) as store:
        assert values(store) == [None, *(blob for _, _, blob in ITEMS[1:])]
        store.create_context(row("a"))
        store.delete_context(A)
        assert wrapped_keys(root) == {}, "the keys under both masters"


def test_a_store_from_before_is_read_in_clear_until_it_is_told_otherwise(root: Path) -> None:
    with Store(root) as store:
        store.put(A, ITEMS)
    with Store(root, master=MASTER) as store:
        store.put(A, [(key("new"), 64, b"encrypted")])
        assert values(store) == [blob for _, _, blob in ITEMS]
        assert (store.encryption().plain, store.encryption().locked) == (4, 0)
        assert store.drop_plain() == 4
        assert values(store, [KEYS[0], key("new")]) == [None, b"encrypted"]
        assert store.check().problems == ()
    assert ITEMS[0][2] not in all_bytes(root)


# -- deleting


def test_after_a_deletion_no_copy_of_the_files_holds_the_key_or_the_text(root: Path, tmp_path: Path) -> None:
    with Store(root, master=MASTER) as store:
        contexts = [ContextId(f"{i:016x}") for i in range(300)]
        for i, ctx in enumerate(contexts):
            store.create_context(row(ctx), [Span((i,), "user", f"secret number {i} of {ctx}")])
            store.put(ctx, [(key((ctx, j)), 64, data(i + j, 500)) for j in range(2)])
        before, text_keys = wrapped_keys(root), wrapped_text_keys(root)
        payloads = {path.name: path.read_bytes() for path in (root / "payload").iterdir()}
        gone = contexts[::2]
        for ctx in gone:
            store.delete_context(ctx)
        copy = shutil.copytree(root, tmp_path / "copy")  # while the store is open: the log is part of it
    kept = all_bytes(copy)
    for i, ctx in enumerate(contexts):
        assert (before[ctx] in kept) == (ctx not in gone)
        assert kept.count(text_keys[ctx]) == (0 if ctx in gone else 2)
        assert f"secret number {i} of {ctx}".encode() not in kept
    # Even with the old payload files, and the master key, nothing of a deleted context opens.
    left = [MASTER.unwrap(ctx, cipher, wrapped) for ctx, cipher, wrapped in _key_rows(copy)]
    encrypted = next(raw for name, raw in payloads.items() if not (copy / "payload" / name).exists())
    assert len(left) == 150 and None not in left
    assert not any(s and s.decrypt(encrypted[: 500 + OVERHEAD], key((ctx, 0))) for s in left for ctx in gone)


def _key_rows(root: Path) -> list[tuple[str, str, bytes]]:
    con = sqlite3.connect(root / "index.sqlite")
    try:
        return con.execute("SELECT context, cipher, wrapped FROM keys").fetchall()
    finally:
        con.close()


def test_what_a_fork_shares_is_encrypted_again_for_it_and_the_rest_is_gone(root: Path) -> None:
    with Store(root, master=MASTER) as store:
        for ctx in "ab":
            store.create_context(row(ctx))
        store.put(A, ITEMS)
        store.delete_context(A, {KEYS[0]: B, KEYS[2]: B})
        assert values(store) == [ITEMS[0][2], None, ITEMS[2][2], None]
        assert wrapped_keys(root).keys() == {"b"}
        assert len(list((root / "payload").iterdir())) == 1
        assert store.check().problems == ()


class Snapshots(Files):
    """Copies the store aside before each of its system calls: what a kill there would leave."""

    def __init__(self, root: Path, into: Path) -> None:
        self.root, self.into, self.n, self.on = root, into, 0, False

    def _take(self) -> None:
        if self.on:
            self.n += 1
            shutil.copytree(self.root, self.into / str(self.n))

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._take()
        return super().open(path, flags, mode)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._take()
        return super().pwritev(fd, buffers, offset)

    def unlink(self, path: Path) -> None:
        self._take()
        super().unlink(path)

    def path_size(self, path: Path) -> int:
        self._take()  # after each commit
        return super().path_size(path)


def test_a_kill_at_any_moment_of_a_deletion_leaves_the_context_whole_or_gone(root: Path, tmp_path: Path) -> None:
    files = Snapshots(root, tmp_path)
    with Store(root, master=MASTER, files=files) as store:
        for ctx in "ab":
            store.create_context(row(ctx), [Span((1, 2))])
        store.put(A, ITEMS)
        wrapped = wrapped_keys(root)["a"]
        files.on = True
        store.delete_context(A, {KEYS[0]: B})
        files.on = False
    seen = set()
    for i in range(1, files.n + 1):
        copy = tmp_path / str(i)
        with Store(copy, master=MASTER) as store:
            alive = {r.id for r in store.contexts()}
            wanted = [blob if A in alive or k == KEYS[0] else None for k, _, blob in ITEMS]
            assert values(store) == wanted, f"at {i}"
            assert store.check().problems == ()
            seen.add(A in alive)
        assert (wrapped in all_bytes(copy)) == (A in alive), f"at {i}"
    assert seen == {True, False}


def test_a_write_that_was_under_way_at_the_deletion_leaves_no_key_behind(root: Path) -> None:
    with Store(root, master=MASTER) as store:
        store.create_context(row("a"))
        store.delete_context(A)
        store.put(A, ITEMS)  # of a context that is gone: still needed by a fork, or discarded next
        assert values(store) == [blob for _, _, blob in ITEMS]
        store.discard(KEYS)
        assert wrapped_keys(root) == {}


# -- the service


TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. "


@on_a_loop
async def test_chunks_that_do_not_open_cost_time_and_no_word_of_the_conversation(tmp_path: Path) -> None:
    async def turns(root: Path, *, lost: bool) -> list[str]:
        said = []
        for i in range(4):
            if i == 1 and lost:
                with sqlite3.connect(root / "index.sqlite") as con:  # as if another key had wrapped it
                    con.execute("UPDATE keys SET wrapped = ?", (OTHER.make("a")[1],))
                con.close()
            async with house(root) as h:
                if i == 0:
                    await h.service.create(APP, name="x", system=None)
                answer, done = await h.say("x", f"{i} {TEXT * 2}", 12)
                said.append(answer)
                if i:
                    assert bool(done.switch.disk) == (i > 1 or not lost) and done.switch.tokens > 100
        return said

    assert await turns(tmp_path / "lost", lost=True) == await turns(tmp_path / "calm", lost=False)


@on_a_loop
async def test_a_fork_goes_on_from_disk_when_the_context_it_came_from_is_deleted(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", TEXT * 4, 4)
        await h.service.wait_idle()
        await h.service.fork(APP, "x", name="y")
        await h.service.delete(APP, "x")
        y = h.service.info(APP, "y").id
    assert wrapped_keys(tmp_path).keys() == {y}
    async with house(tmp_path) as h:
        _, done = await h.say("y", "go on", 4)
        assert done.switch.disk > 256 and not done.switch.recomputed
