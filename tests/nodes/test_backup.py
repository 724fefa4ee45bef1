"""Backups: the second one writes what is new; all comes back, also without the index, and not what was deleted."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.errors import BadRequest
from llmaas.nodes.archive.blocks import Sink
from llmaas.nodes.archive.reader import ArchiveReader, Lost
from llmaas.nodes.archive.records import ChunkRecord
from llmaas.nodes.backup import BackedUp, Restore, back_up, back_up_all
from llmaas.nodes.backup_index import INDEX, archives, read_index
from llmaas.nodes.importing import ArchiveImport, Imported, NotImported, Outcome
from llmaas.records import Message
from tests.nodes.test_export_and_import import keyed, on_thread, said, talk
from tests.support.daemon import serving
from tests.support.loop import on_a_loop


@contextmanager
def plainly(path: Path) -> Iterator[Sink]:
    sink = io.BytesIO()
    yield sink
    path.write_bytes(sink.getvalue())


def save(client: Client, folder: Path) -> BackedUp:
    folder.mkdir(exist_ok=True)
    return back_up(client, folder, plainly, 0.0)


def restored(client: Client, folder: Path) -> list[Outcome]:
    index = read_index(folder)
    known = (lambda name: index.name(name) in index.contexts) if index is not None else lambda name: True
    restore, outcomes = Restore(ArchiveImport(client), known), list[Outcome]()
    for path in reversed(archives(folder)):
        outcomes += restore.archive(ArchiveReader(io.BytesIO(path.read_bytes())))
    return [*outcomes, *restore.end()]


def n_chunks(path: Path) -> int:
    return sum(isinstance(item, ChunkRecord) for item in ArchiveReader(io.BytesIO(path.read_bytes())))


def all_said(client: Client) -> dict[str, list[Message]]:
    return {info.name: said(client, info.name) for info in client.contexts()}


@on_a_loop
async def test_the_second_backup_writes_what_is_new_and_all_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    async with serving(tmp_path / "a", store=keyed) as daemon:
        for name in ("x", "y", "gone"):
            await on_thread(lambda client, name=name: talk(client, name, 2), daemon)  # type: ignore[misc]
        await daemon.until_idle()
        first = await on_thread(lambda client: save(client, folder), daemon)
        assert (first.n_contexts, first.n_changed, first.failed) == (3, 3, []) and first.n_chunks > 3
        nothing = await on_thread(lambda client: save(client, folder), daemon)
        assert (nothing.archive, nothing.n_contexts, len(archives(folder))) == (None, 3, 1)
        await on_thread(lambda client: client.ask("y", "And then? " * 9, max_tokens=9), daemon)
        await on_thread(lambda client: client.delete("gone"), daemon)
        await daemon.until_idle()
        second = await on_thread(lambda client: save(client, folder), daemon)
        assert (second.n_contexts, second.n_changed) == (2, 1) and second.archive is not None
        assert 0 < n_chunks(second.archive) < 4 < n_chunks(archives(folder)[0]), "of y only the end is new"
        before = await on_thread(all_said, daemon)
    async with serving(tmp_path / "b", store=keyed) as daemon:
        outcomes = await on_thread(lambda client: restored(client, folder), daemon)
        assert sorted(o.info.name for o in outcomes if isinstance(o, Imported)) == ["x", "y"] and len(outcomes) == 2
        assert await on_thread(all_said, daemon) == before
        infos = await on_thread(lambda client: client.contexts(), daemon)
        assert all(info.tiers[3] <= 1 for info in infos), "nothing need be computed"
        again = await on_thread(lambda client: restored(client, folder), daemon)
        assert [type(o) for o in again] == [NotImported, NotImported]
        assert await on_thread(all_said, daemon) == before


@pytest.mark.parametrize("damage", [None, b"", b"{}", b'{"version": 1, "last": 1, "salt": 7}', b"[1]"])
@on_a_loop
async def test_an_index_that_is_missing_or_damaged_costs_space_and_no_context(
    damage: bytes | None, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    async with serving(tmp_path / "a", store=keyed) as daemon:
        await on_thread(lambda client: talk(client, "x", 1), daemon)
        await daemon.until_idle()
        first = await on_thread(lambda client: save(client, folder), daemon)
        if damage is None:
            (folder / INDEX).unlink()
        else:
            (folder / INDEX).write_bytes(damage)
        again = await on_thread(lambda client: save(client, folder), daemon)
        assert (again.n_changed, again.n_chunks) == (1, first.n_chunks)
        assert first.archive and again.archive and first.archive != again.archive
        before = await on_thread(all_said, daemon)
        (folder / INDEX).unlink()
    async with serving(tmp_path / "b", store=keyed) as daemon:
        outcomes = await on_thread(lambda client: restored(client, folder), daemon)
        assert [type(o) for o in outcomes] == [Imported]
        assert await on_thread(all_said, daemon) == before


@on_a_loop
async def test_an_archive_that_the_index_does_not_know_is_not_written_over(tmp_path: Path) -> None:
    """The backup was killed before it wrote the index."""
    folder = tmp_path / "backup"
    async with serving(tmp_path / "a", store=keyed) as daemon:
        await on_thread(lambda client: talk(client, "x", 1), daemon)
        await on_thread(lambda client: save(client, folder), daemon)
        index = (folder / INDEX).read_bytes()
        await on_thread(lambda client: client.ask("x", "And?", max_tokens=3), daemon)
        await on_thread(lambda client: save(client, folder), daemon)
        (folder / INDEX).write_bytes(index)
        assert read_index(folder) is None
        third = await on_thread(lambda client: save(client, folder), daemon)
        assert [path.name for path in archives(folder)][2:] == ["00000003.archive"] and third.n_changed == 1


@on_a_loop
async def test_one_file_holds_all_and_a_damaged_one_the_rest(tmp_path: Path) -> None:
    sink = io.BytesIO()
    async with serving(tmp_path / "a", store=keyed) as daemon:
        for name in ("x", "y"):
            await on_thread(lambda client, name=name: talk(client, name, 1), daemon)  # type: ignore[misc]
        await daemon.until_idle()
        done = await on_thread(lambda client: back_up_all(client, sink, 0.0), daemon)
        assert (done.n_contexts, done.n_changed) == (2, 2)
        before = await on_thread(all_said, daemon)
    data = sink.getvalue()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "00000001.archive").write_bytes(data[: len(data) - 100])
    async with serving(tmp_path / "b", store=keyed) as daemon:
        outcomes = await on_thread(lambda client: restored(client, tmp_path / "half"), daemon)
        assert any(isinstance(o, Lost) for o in outcomes)
        assert await on_thread(all_said, daemon) == before


@on_a_loop
async def test_a_folder_is_of_one_app(tmp_path: Path) -> None:
    """Or the contexts of the other would count as deleted."""
    folder = tmp_path / "backup"
    async with serving(tmp_path / "a", store=keyed) as daemon:
        await on_thread(lambda client: talk(client, "x", 1), daemon)
        await on_thread(lambda client: save(client, folder), daemon)
        with pytest.raises(BadRequest, match="another app"):
            await on_thread(lambda client: save(client, folder), daemon, "other")
        assert len(archives(folder)) == 1
