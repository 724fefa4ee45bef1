"""Reading and opening chunks apart: what comes of it is what ``get`` gives, whatever happens in between."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from llmaas.kvchunks.store.cipher import KEY_BYTES, MasterKey
from llmaas.kvchunks.store.store import Store
from llmaas.records import ContextId
from tests.support.store_data import data, key, payload_files, row

A, B = ContextId("a"), ContextId("b")
KEYS = [key(i) for i in range(8)]
DATA = [data(i, 40_000 + i) for i in range(8)]


@pytest.fixture(params=["encrypted", "in clear"])
def store(request: pytest.FixtureRequest, root: Path) -> Store:
    """With two files, the chunks of the second one first."""
    store = Store(root, master=MasterKey(b"m" * KEY_BYTES) if request.param == "encrypted" else None)
    request.addfinalizer(store.close)
    for context, some in ((A, range(4, 8)), (B, range(4))):
        store.create_context(row(context, context))
        store.put(context, [(KEYS[i], 64, DATA[i]) for i in some])
    return store


def opened(store: Store) -> list[bytes | None]:
    chunks = {sealed.place.key: store.open(sealed) for sealed in store.read(store.places(KEYS))}
    found = [chunks.get(k) for k in KEYS]
    return [None if chunk is None else bytes(chunk) for chunk in found]


def test_chunks_are_opened_to_what_was_put_and_lie_as_they_were_written(store: Store) -> None:
    assert opened(store) == DATA
    places = store.places([key("unknown"), *reversed(KEYS)])
    assert [place.key for place in places] == KEYS[4:] + KEYS[:4]
    assert [a.end == b.offset for a, b in pairwise(places)] == [True] * 3 + [False] + [True] * 3


def test_what_is_damaged_on_disk_is_none_and_forgotten(store: Store) -> None:
    places = {place.key: place for place in store.places(KEYS)}
    for file in payload_files(store.root):
        if places[KEYS[3]].file == int(file.stem, 16):
            with file.open("r+b") as payload:
                payload.truncate(places[KEYS[3]].offset + 5)
    assert opened(store) == [*DATA[:3], None, *DATA[4:]]
    assert store.stats().damaged == 1 and len(store.places(KEYS)) == 7


def test_what_moves_between_reading_and_opening_is_opened_all_the_same(store: Store) -> None:
    kept = KEYS[3:4]
    places = store.places(kept)
    sealed = store.read(places)
    store.discard(KEYS[:3])  # which may write the file anew
    assert [bytes(store.open(one) or b"") for one in sealed] == DATA[3:4]
    assert [bytes(store.open(one) or b"") for one in store.read(places)] == DATA[3:4]


def test_what_was_encrypted_for_a_deleted_context_is_found_where_its_heir_has_it(store: Store) -> None:
    sealed = store.read(store.places(KEYS[:2]))
    gone = store.delete_context(B, {KEYS[0]: A})
    found = [store.open(one) for one in sealed]
    assert bytes(found[0] or b"") == DATA[0]
    if KEYS[1] in gone:
        assert found[1] is None
