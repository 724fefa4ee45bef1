"""A disk that is really full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.errors import DiskFull
from llmaas.kvchunks.store.store import Span, Store
from llmaas.records import ChunkKey
from tests.support.store_data import NOISE, A, B, key, row


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MB; skips where mounting is not allowed."""
    path = tmp_path / "tiny"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_really_full_refuses_and_goes_on_when_there_is_room(tiny_disk: Path) -> None:
    root = tiny_disk / "store"
    kept: dict[ChunkKey, bytes] = {}
    with Store(root, reserve=100_000) as store:
        store.create_context(row(A), [Span((1, 2))])
        with pytest.raises(DiskFull, match="100000 kept for tokens"):
            for i in range(100):
                k = key(i)
                store.put(A, [(k, 64, NOISE[i : i + 100_000])])
                kept[k] = NOISE[i : i + 100_000]
        assert 20 < len(kept) < 30
        assert [bytes(v or b"") for v in store.get(list(kept))] == list(kept.values())
        n_tokens = store.append(A, [Span((3,))], expect=2, now=0.0)  # tokens may go on

        ballast = tiny_disk / "ballast"
        with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(DiskFull):
            while True:
                n_tokens = store.append(A, [Span(tuple(range(5000)))], expect=n_tokens, now=0.0)
        with pytest.raises(DiskFull):
            store.create_context(row(B))
        assert len(store.tokens(A)) == n_tokens
        assert store.check().problems == ()

        assert store.discard(list(kept)) > 2_000_000  # even now
        assert store.append(A, [Span((9,))], expect=n_tokens, now=0.0) == n_tokens + 1
        assert store.put(A, [(key("new"), 64, NOISE[:100_000])]) > 100_000
    with Store(root, reserve=0) as store:
        assert len(store.tokens(A)) == n_tokens + 1
        assert bytes(store.get([key("new")])[0] or b"") == NOISE[:100_000]
        assert store.check().problems == ()


def test_opening_on_a_full_disk_says_so_and_works_when_there_is_room(tiny_disk: Path) -> None:
    root = tiny_disk / "store"
    with Store(root) as store:
        store.create_context(row(A), [Span((1, 2))])
    ballast = tiny_disk / "ballast"
    with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(DiskFull):
        Store(root)
    ballast.unlink()
    with Store(root) as store:
        assert list(store.tokens(A)) == [1, 2]
