"""Single bits that flip in the files of a closed store: every conversation is as it was, or it is said."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llmaas.errors import ChunkDamaged, StoreFailed
from llmaas.kvchunks.codec.header import check
from llmaas.kvchunks.store.store import Store
from tests.support.damaged_store import MASTER, Reading, copy_store, fill, flip, read, repaired
from tests.support.store_data import payload_files

COUNTS = [60, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


@pytest.mark.parametrize("n", COUNTS)
def test_a_flipped_bit_of_the_index_changes_no_conversation_without_a_word(memory: Path, n: int) -> None:
    fill(memory / "whole")
    whole = read(memory / "whole")
    assert (whole.opened, whole.said, len(whole.shown)) == (True, "", 25)
    rng, size = random.Random(n), 8 * (memory / "whole" / "index.sqlite").stat().st_size
    refused = unlike = stopped = 0
    for bit in rng.sample(range(size), n):
        root = copy_store(memory / "whole", memory / "damaged")
        flip(root / "index.sqlite", bit)
        found = read(root)
        assert found.opened or "llmaas doctor --repair" in found.said, f"bit {bit}"
        assert found.content() == whole.content() or found.said, f"bit {bit}"
        assert all(whole.shown.get(name) == spans for name, spans in found.shown.items()), f"bit {bit}"
        if not found.opened:
            stopped += not _repaired_without_loss(root, memory / "again", whole)
        after, told = repaired(root)
        assert after.opened, f"bit {bit}: {after.said}"
        changed = [name for name in whole.rows if after.of(name) != whole.of(name)]
        assert all(f"{name[1]!r} of {name[0]}" in told for name in changed) or "could not be read" in told, f"bit {bit}"
        refused += not found.opened
        unlike += bool(changed)
    assert refused <= n // 8, "a few bits are in the structures of SQLite"
    assert unlike <= n // 20
    assert stopped <= n // 50, "the daemon repairs at its start what costs nothing"


def _repaired_without_loss(root: Path, again: Path, whole: Reading) -> bool:
    """What the daemon does at its start with an index that cannot be opened."""
    copy = copy_store(root, again)
    before = (copy / "index.sqlite").read_bytes()
    try:
        Store.repair_index(copy, only_whole=True)
    except StoreFailed as error:
        assert "llmaas doctor --repair" in error.hint
        assert (copy / "index.sqlite").read_bytes() == before
        return False
    assert read(copy).shown == whole.shown, "every conversation is there under its name; when it was used may be lost"
    return True


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("encrypted", [True, False])
def test_a_flipped_bit_of_a_chunk_costs_that_chunk(memory: Path, n: int, encrypted: bool) -> None:
    master = MASTER if encrypted else None
    fill(memory / "whole", master=master, contexts=4)
    with Store(memory / "whole", master=master) as store:
        keys = [chunk.key for chunk in store.chunks()]
        whole = [bytes(view or b"") for view in store.get(keys)]
    files = payload_files(memory / "whole")
    rng = random.Random(n)
    for _ in range(n):
        root = copy_store(memory / "whole", memory / "damaged")
        path = root / "payload" / rng.choice(files).name
        flip(path, rng.randrange(8 * path.stat().st_size))
        with Store(root, master=master) as store:
            assert len(store.check().problems) == 1
            wrong = 0
            for key, view, right in zip(keys, store.get(keys), whole, strict=True):
                if view is not None and bytes(view) != right:
                    with pytest.raises(ChunkDamaged):
                        check(view, key)
                wrong += view is None or bytes(view) != right
            assert wrong == 1
            assert store.stats().damaged == int(encrypted)
