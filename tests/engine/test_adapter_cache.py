"""The cache of loaded adapters: pins, the least recently used first, and files that change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmaas.engine.adapter_cache import AdapterCache, AdapterFile, examine
from llmaas.engine.base import BatchItem
from llmaas.engine.fake import FakeEngine, fake_adapter
from llmaas.errors import AdapterUnreadable, BadRequest, Busy

SIZE = len(fake_adapter(b"weights of a"))


def make(folder: Path, name: str) -> AdapterFile:
    path = folder / name
    path.write_bytes(fake_adapter(f"weights of {name}".encode()))
    return examine(name, path, 1 << 30)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def test_the_least_recently_used_adapter_leaves_first(tmp_path: Path, engine: FakeEngine) -> None:
    a, b, c = (make(tmp_path, name) for name in "abc")
    cache = AdapterCache(engine, 2 * SIZE)
    for adapter in (a, b, a, c):
        cache.acquire(adapter)
        cache.release(adapter.fingerprint)
    assert list(cache.loaded) == [a.fingerprint, c.fingerprint]
    assert sum(cache.loaded.values()) == 2 * SIZE and cache.loads == 3
    engine.step([BatchItem(0, 0, [1])], c.fingerprint)
    with pytest.raises(ValueError, match="no adapter"):
        engine.step([BatchItem(0, 1, [1])], b.fingerprint)


def test_a_pinned_adapter_stays_and_what_does_not_fit_beside_it_must_wait(tmp_path: Path, engine: FakeEngine) -> None:
    a, b = (make(tmp_path, name) for name in "ab")
    cache = AdapterCache(engine, SIZE)
    for _ in range(2):
        cache.acquire(a)
    cache.release(a.fingerprint)
    with pytest.raises(Busy, match="no room for 'b'"):
        cache.acquire(b)
    cache.evict_idle(a.fingerprint)
    assert list(cache.loaded) == [a.fingerprint]
    cache.release(a.fingerprint)
    cache.acquire(b)
    assert list(cache.loaded) == [b.fingerprint]


def test_an_idle_adapter_can_be_evicted_at_once(tmp_path: Path, engine: FakeEngine) -> None:
    a = make(tmp_path, "a")
    cache = AdapterCache(engine, SIZE)
    cache.acquire(a)
    cache.release(a.fingerprint)
    cache.evict_idle(a.fingerprint)
    cache.evict_idle(a.fingerprint)
    assert cache.loaded == {}


def test_a_file_that_changed_is_not_loaded_and_one_that_was_only_touched_is(tmp_path: Path, engine: FakeEngine) -> None:
    a, b = (make(tmp_path, name) for name in "ab")
    cache = AdapterCache(engine, 10 * SIZE)
    a.path.write_bytes(fake_adapter(b"other weights"))
    b.path.touch()
    with pytest.raises(AdapterUnreadable, match="has changed"):
        cache.acquire(a)
    cache.acquire(b)
    b.path.unlink()
    cache.acquire(b)  # it is loaded
    with pytest.raises(AdapterUnreadable, match="cannot read"):
        AdapterCache(engine, SIZE).acquire(b)
    assert cache.loads == 1


def test_a_file_that_has_become_too_large_or_no_file_at_all_is_refused_at_once(
    tmp_path: Path, engine: FakeEngine
) -> None:
    a, b = (make(tmp_path, name) for name in "ab")
    cache = AdapterCache(engine, 10 * SIZE)
    a.path.unlink()
    os.mkfifo(a.path)
    with b.path.open("ab") as file:
        file.truncate(1 << 40)  # hours to read
    with pytest.raises(AdapterUnreadable, match="not a regular file"):
        cache.acquire(a)
    with pytest.raises(BadRequest, match="adapter 'b' has"):
        cache.acquire(b)
    assert cache.loads == 0


def test_a_file_without_bytes_is_refused_before_the_engine_opens_it(tmp_path: Path, engine: FakeEngine) -> None:
    """Files of /proc say that they are empty, and some of them block whoever reads them, such as /proc/kmsg."""
    (tmp_path / "empty").write_bytes(b"")
    for path in (tmp_path / "empty", Path("/proc/self/status")):
        with pytest.raises(AdapterUnreadable, match="it is empty"):
            examine("a", path, 10 * SIZE)
