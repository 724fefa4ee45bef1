"""A damaged index is repaired: what can be read of it is kept."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from llmaas.errors import StoreFailed
from llmaas.kvchunks.store import repair as store_repair
from llmaas.kvchunks.store.store import AdapterRow, Span, Store
from llmaas.records import ContextId
from tests.support.store_data import NOISE, SMALL, A, row


def test_a_damaged_index_is_named_and_moved_aside_only_on_request(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Store(root) as store:
        store.create_context(row(A), [Span((1, 2))])
        store.put(A, SMALL)
    index = root / "index.sqlite"
    assert Store.repair_index(root) is None  # a sound one is never moved
    index.write_bytes(b"this is no database, but long enough to be read as one" * 100)
    with pytest.raises(StoreFailed, match=r"index\.sqlite is damaged") as caught:
        Store(root)
    assert "llmaas doctor --repair" in caught.value.hint
    assert index.exists()
    repaired = Store.repair_index(root)
    assert repaired is not None and repaired.moved == root / "index.sqlite.corrupt-1"
    assert (repaired.contexts, repaired.shortened) == (0, ())
    with Store(root) as store:
        assert store.contexts() == []
        assert store.check().problems == ()
    index.write_bytes(b"again" * 1000)
    again = Store.repair_index(root)
    assert again is not None and again.moved == root / "index.sqlite.corrupt-2"
    index.unlink()
    with pytest.raises(StoreFailed, match="there is no index"):
        Store.repair_index(root)


ADAPTER = AdapterRow("red", "/red.gguf", "f1")


def conversation(i: int) -> list[Span]:
    return [Span(tuple(range(i, i + 300)), "user", f"word {i} " * 100), Span((i,) * 7, "assistant", "yes", open=True)]


def full_index(root: Path) -> dict[ContextId, list[Span]]:
    """200 conversations told in turns, so that each lies in many places, and some chunks."""
    kept: dict[ContextId, list[Span]] = {}
    with Store(root) as store:
        for i in range(200):
            store.create_context(row(ContextId(f"{i}")), conversation(i))
        for i in range(200):
            ctx = ContextId(f"{i}")
            store.append(ctx, conversation(i + 1000), expect=307, now=20.0 + i)
            kept[ctx] = [*conversation(i), *conversation(i + 1000)]
        store.put(A, SMALL)
        store.adapters.save(ADAPTER)
    return kept


@pytest.mark.parametrize("page", [1, 3, 40, 100, 140])
def test_what_can_be_read_of_a_damaged_index_is_kept(tmp_path: Path, page: int) -> None:
    root = tmp_path / "store"
    whole = full_index(root)
    with (root / "index.sqlite").open("r+b") as file:
        file.seek(page * 4096)
        file.write(NOISE[:4096])
    before = (root / "index.sqlite").read_bytes()
    repaired = Store.repair_index(root)
    assert repaired is not None
    assert repaired.moved.read_bytes() == before
    with Store(root) as store:
        assert store.check().problems == ()
        found = {c.id: store.spans(c.id) for c in store.contexts()}
        assert len(found) == repaired.contexts
        assert store.adapters.all() == [ADAPTER]
        shortened = {short.name: short for short in repaired.shortened}
        for ctx, spans in found.items():
            assert spans == whole[ctx][: len(spans)]
            short = shortened.pop(f"name of {ctx}", None)
            assert (short is None) == (len(spans) == 4)
            assert short is None or (short.kept, short.n_tokens) == (sum(len(s.tokens) for s in spans), 614)
        assert shortened == {}
        assert (len(found), repaired.lost) == (200, 0)
        assert len(repaired.shortened) < 10
        for view, item in zip(store.get([k for k, _, _ in SMALL]), SMALL, strict=True):
            assert view is None or bytes(view) == item[2]
    assert Store.repair_index(root) is None


def test_a_repair_that_is_killed_between_two_renames_is_ended_by_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    whole = full_index(root)
    with (root / "index.sqlite").open("r+b") as file:
        file.seek(40 * 4096)
        file.write(NOISE[:4096])

    def killed(*_: object) -> None:
        raise OSError(errno.EINTR, "as good as killed")

    monkeypatch.setattr(store_repair, "finish", killed)
    with pytest.raises(StoreFailed):
        Store.repair_index(root)
    monkeypatch.undo()
    assert not (root / "index.sqlite").exists()
    (root / "index.sqlite-wal").write_bytes(NOISE[:9000])  # of the old index
    with Store(root) as store:
        assert store.check().problems == ()
        assert {c.id for c in store.contexts()} == whole.keys()
