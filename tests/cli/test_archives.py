"""``llmaas ctx export`` and ``import`` with the real model: the conversation goes on, bit by bit, without computing."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.calls import Done, Sampling
from llmaas.records import Message
from tests.cli.conftest import Daemon, Run

TEXT = "The harbour was quiet. " * 40
EXACT = ("--bits", "16/16", "--no-warm-start")


def ask(daemon: Daemon, context: str, text: str, n: int) -> tuple[str, Done]:
    with Client(daemon.socket, app="cli") as client:
        if not any(info.name == context for info in client.contexts()):
            client.create(name=context)
        stream = client.generate(context, text, max_tokens=n, sampling=Sampling(temperature=0.0))
        said = "".join(piece.text for piece in stream)
        return said, stream.done


@pytest.fixture
def phone_and_desk(gguf: Path, tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    phone, desk = Daemon(tmp_path / "phone"), Daemon(tmp_path / "desk")
    try:
        for daemon in (phone, desk):
            daemon.root.mkdir()
            daemon.more = EXACT
            daemon.start()
        ask(phone, "notes", TEXT, 24)
        until_stored(phone, "notes")
        yield phone, desk
    finally:
        for daemon in (phone, desk):
            if daemon.process is not None:
                daemon.stop()


def until_stored(daemon: Daemon, context: str) -> None:
    """Chunks are coded after the answer."""
    with Client(daemon.socket, app="cli") as client:
        late = time.monotonic() + 60
        for index in range(-(-client.export_chunks(context).n_kv // 64)):
            while not client.export_chunks(context, [index]).pieces:
                assert time.monotonic() < late
                time.sleep(0.1)


def shown(daemon: Daemon, context: str) -> tuple[int, tuple[Message, ...]]:
    with Client(daemon.socket, app="cli") as client:
        detail = client.show(context)
        return detail.info.n_tokens, tuple(detail.messages)


def test_it_goes_on_at_another_daemon_bit_by_bit_and_nothing_is_computed(
    llmaas: Run, phone_and_desk: tuple[Daemon, Daemon], tmp_path: Path
) -> None:
    phone, desk = phone_and_desk
    there, here = ({"LLMAAS_SOCKET": str(daemon.socket)} for daemon in phone_and_desk)
    file, word = str(tmp_path / "notes.archive"), tmp_path / "word"
    word.write_text("open sesame\n")
    out = llmaas("ctx", "export", "notes", file, "--passphrase-file", str(word), **there)
    assert (out.returncode, out.stderr) == (0, ""), out
    assert Path(file).stat().st_mode & 0o777 == 0o600 and b"harbour" not in Path(file).read_bytes()
    refused = llmaas("ctx", "import", file, **here)
    assert refused.returncode == 2 and "encrypted" in refused.stderr
    back = llmaas("ctx", "import", file, "--passphrase-file", str(word), **here)
    assert (back.returncode, back.stderr) == (0, ""), back
    assert shown(phone, "notes") == shown(desk, "notes")
    n_tokens = shown(phone, "notes")[0]
    said, done = ask(desk, "notes", "And then?", 24)
    assert (done.switch.recomputed, done.switch.cells) == (0, 0) and done.switch.disk >= n_tokens - 1
    assert said == ask(phone, "notes", "And then?", 24)[0]
    again = llmaas("ctx", "import", file, "--passphrase-file", str(word), **here)
    assert again.returncode == 1 and "notes" in again.stderr, "there is one of that name"


@pytest.mark.slow
def test_a_daemon_that_is_killed_while_chunks_arrive_has_the_whole_context(
    phone_and_desk: tuple[Daemon, Daemon],
) -> None:
    phone, desk = phone_and_desk
    killed_while_it_arrives(phone, desk)
    assert shown(desk, "arriving") == shown(phone, "notes")
    assert ask(desk, "arriving", "And now?", 4)[1].n_generated == 4


@pytest.mark.slow
def test_a_backup_comes_back_at_another_daemon(
    llmaas: Run, phone_and_desk: tuple[Daemon, Daemon], tmp_path: Path
) -> None:
    there, here = ({"LLMAAS_SOCKET": str(daemon.socket)} for daemon in phone_and_desk)
    backup_and_restore(llmaas, tmp_path, there, here)


def killed_while_it_arrives(phone: Daemon, desk: Daemon) -> None:
    """The desk is killed when half of the chunks are there; then it starts again."""
    with Client(phone.socket, app="cli") as source, Client(desk.socket, app="cli") as target:
        target.import_context(source.export_context("notes"), name="arriving")
        for index in range(3):
            page = source.export_chunks("notes", [index])
            target.import_chunks("arriving", page.root, page.kv, page.pieces, trusted=True)
        desk.stop(signal.SIGKILL)
    desk.socket.unlink()  # ``start`` waits until it is there
    desk.start()


def backup_and_restore(llmaas: Run, tmp_path: Path, there: dict[str, str], here: dict[str, str]) -> None:
    key, folder = tmp_path / "my.key", tmp_path / "backup"
    public = llmaas("ctx", "keygen", str(key)).stdout.strip()
    assert public.startswith("llmaas-pub-") and key.stat().st_mode & 0o777 == 0o600
    assert llmaas("ctx", "keygen", str(key)).stdout.strip() == public, "it is not written over"
    for says in ("1 contexts, 1 of them written", "nothing has changed"):
        made = llmaas("backup", str(folder), "--recipient", public, **there)
        assert (made.returncode, made.stderr) == (0, "") and says in made.stdout, made
    assert llmaas("restore", str(folder), **here).returncode == 2, "it is encrypted"
    back = llmaas("restore", str(folder), "--key-file", str(key), **here)
    assert back.returncode == 0 and "notes is here" in back.stdout and "vouches" in back.stderr, back
    alike = [llmaas("ctx", "show", "notes", "--json", **at).stdout for at in (there, here)]
    assert len({json.dumps(json.loads(text)["conversation"]) for text in alike}) == 1
    file = tmp_path / "all.archive"
    assert llmaas("backup", str(file), "--recipient", str(key), **there).returncode == 2, "that is the secret one"
    assert llmaas("backup", str(file), **there).returncode == 0
    assert llmaas("ctx", "rm", "notes", **here).returncode == 0
    trusted = llmaas("restore", str(file), "--trust-chunks", **here)
    assert (trusted.returncode, trusted.stderr) == (0, ""), trusted
