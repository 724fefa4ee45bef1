"""Loading a file from a web server that is not always there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.errors import DiskFull
from llmaas.model_files.download import DownloadFailed, download
from tests.support.file_server import FileServer, file_server

CONTENT = bytes(range(256)) * 12_000  # three blocks


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server(CONTENT) as served:
        yield served


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "m.gguf"


def get(server: FileServer, target: Path, **options: object) -> str:
    return download(server.url, target, pause_s=0.0, **options).sha256  # type: ignore[arg-type]


def names(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_is_loaded_and_its_progress_told(server: FileServer, target: Path) -> None:
    told: list[tuple[int, int | None]] = []
    assert get(server, target, sha256=server.sha256.upper(), progress=lambda *each: told.append(each)) == server.sha256
    assert target.read_bytes() == CONTENT and names(target) == ["m.gguf"]
    assert told[0] == (0, len(CONTENT)) and told[-1] == (len(CONTENT), len(CONTENT))
    assert target.stat().st_mode & 0o777 == 0o600 and target.parent.stat().st_mode & 0o777 == 0o700


def test_a_connection_that_breaks_goes_on_where_it_broke(server: FileServer, target: Path) -> None:
    server.cut_after = [1_000_000, 500_000, 0]
    assert get(server, target) == server.sha256
    assert target.read_bytes() == CONTENT
    assert server.asked[0] == "" and server.asked[1] == "bytes=1000000-" and server.asked[2] == "bytes=1500000-"


def test_an_interrupted_load_goes_on_in_the_next_process(server: FileServer, target: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done >= 1 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, target, progress=interrupt)
    assert not target.exists() and (target.parent / ".m.gguf.part").exists()
    assert get(server, target, sha256=server.sha256) == server.sha256
    assert server.asked == ["", f"bytes={1 << 20}-"]
    assert target.read_bytes() == CONTENT and names(target) == ["m.gguf"]


def test_a_file_that_has_changed_meanwhile_is_loaded_from_its_beginning(server: FileServer, target: Path) -> None:
    server.cut_after = [700_000]
    server.errors = []
    with pytest.raises(KeyboardInterrupt):
        get(server, target, progress=_interrupt_at(700_000))
    server.content = CONTENT[::-1]
    assert get(server, target) == server.sha256
    assert target.read_bytes() == CONTENT[::-1]


def _interrupt_at(n: int) -> object:
    def interrupt(done: int, total: int | None) -> None:
        if done >= n:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize("how", ["ranges", "tagged"])
def test_a_server_that_cannot_resume_sends_all_again(server: FileServer, target: Path, how: str) -> None:
    setattr(server, how, False)
    server.cut_after = [400_000]
    assert get(server, target) == server.sha256
    assert target.read_bytes() == CONTENT


def test_another_checksum_leaves_nothing_behind(server: FileServer, target: Path) -> None:
    with pytest.raises(DownloadFailed, match=server.sha256):
        get(server, target, sha256="0" * 64)
    assert not target.exists() and not (target.parent / ".m.gguf.part").exists()


def test_a_server_that_fails_for_a_while_is_asked_again(server: FileServer, target: Path) -> None:
    server.errors = [503, 500, 429]
    assert get(server, target) == server.sha256


def test_a_file_that_is_not_there_is_said_at_once(server: FileServer, target: Path) -> None:
    server.errors = [404]
    with pytest.raises(DownloadFailed, match="404"):
        get(server, target)
    server.errors = [403]
    with pytest.raises(DownloadFailed) as caught:
        get(server, target)
    assert "licence" in caught.value.hint and len(server.asked) == 2


def test_a_server_that_never_works_is_given_up(server: FileServer, target: Path) -> None:
    server.errors = [500] * 50
    with pytest.raises(DownloadFailed, match="500"):
        get(server, target)
    assert len(server.asked) < 10


def test_what_does_not_fit_on_the_disk_is_not_begun(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(target.parent.parent)
    full = os.statvfs_result((real.f_bsize, real.f_frsize, real.f_blocks, 0, 0, *tuple(real)[5:10]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(DiskFull, match="MB are free"):
        get(server, target)
    assert not target.exists()


def test_a_redirection_to_an_address_without_encryption_is_not_followed(server: FileServer, target: Path) -> None:
    server.redirect = "http://example.org/m.gguf"
    with pytest.raises(DownloadFailed, match="not https"):
        get(server, target)
    with file_server(CONTENT) as other:
        server.redirect = other.url
        assert get(server, target) == other.sha256


def test_a_link_in_the_place_of_the_part_is_not_followed(server: FileServer, target: Path, tmp_path: Path) -> None:
    target.parent.mkdir()
    (tmp_path / "other").write_bytes(b"precious")
    (target.parent / ".m.gguf.part").symlink_to(tmp_path / "other")
    with pytest.raises(Exception, match="cannot write"):
        get(server, target)
    assert (tmp_path / "other").read_bytes() == b"precious"
