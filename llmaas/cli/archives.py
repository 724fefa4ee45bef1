"""Archives as files: whose key locks and opens them, and writing one so that it is whole or not there.

Law: passphrases and secret keys come from files, never from the command line, which every user of the machine can see.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llmaas.cli.out import print_error, print_note, printable
from llmaas.errors import BadRequest, assert_never
from llmaas.regular_file import open_regular, replacing

if TYPE_CHECKING:
    from llmaas.nodes.archive.blocks import Sink, Source
    from llmaas.nodes.archive.locks import Lock, Opener, SecretKey
    from llmaas.nodes.importing import Imported, Outcome

_BUFFER = 1 << 16
"""What is larger goes to the file as it is, without a copy: nearly all chunks do."""
_DISK_RUN = 8 << 20
"""Bytes that the disk is given at once."""
_MOST_SECRET = 4096


def add_lock(parser: argparse.ArgumentParser) -> None:
    """The arguments that say who can open the archive that is written."""
    lock = parser.add_mutually_exclusive_group()
    lock.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="encrypt: its first line is what opens the archive"
    )
    lock.add_argument(
        "--recipient", metavar="KEY", help="encrypt for who has the secret key: a public key, or a file that holds it"
    )


def add_opener(parser: argparse.ArgumentParser) -> None:
    """The arguments that open an encrypted archive, and say whether its chunks are believed."""
    opener = parser.add_mutually_exclusive_group()
    opener.add_argument("--passphrase-file", type=Path, metavar="FILE", help="its first line opens the archive")
    opener.add_argument("--key-file", type=Path, metavar="FILE", help="the secret key that 'llmaas ctx keygen' wrote")
    parser.add_argument(
        "--trust-chunks",
        action="store_true",
        help="use what another daemon computed: you know who made it (a passphrase that opens it says so, too)",
    )


def lock_of(args: argparse.Namespace) -> Lock | None:
    """Raises BadRequest."""
    from llmaas.nodes.archive.locks import Passphrase, Recipient

    if args.passphrase_file is not None:
        return Passphrase(first_line(args.passphrase_file))
    if args.recipient is None:
        return None
    is_file = not args.recipient.startswith("llmaas-") and Path(args.recipient).is_file()
    return Recipient.parsed(first_line(Path(args.recipient)) if is_file else args.recipient)


def opener_of(args: argparse.Namespace) -> Opener | None:
    """Raises BadRequest."""
    from llmaas.nodes.archive.locks import Passphrase, SecretKey

    if args.passphrase_file is not None:
        return Passphrase(first_line(args.passphrase_file))
    return SecretKey.parsed(first_line(args.key_file)) if args.key_file is not None else None


def first_line(path: Path) -> str:
    """Raises BadRequest."""
    try:
        with open_regular(path) as file:
            return file.readline(_MOST_SECRET).decode("utf-8", "surrogateescape").rstrip("\r\n")
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from error


def key_pair(path: Path) -> SecretKey:
    """The secret key in a file, which is made if it is not there. Raises BadRequest."""
    from llmaas.nodes.archive.locks import SecretKey

    made = SecretKey.new()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return SecretKey.parsed(first_line(path))
    except OSError as error:
        raise BadRequest(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(fd, "w") as file:
        file.write(made.written() + "\n")
    return made


class ToDisk:
    """Writes to a file, and has the disk begin with it: else all of an archive would lie in the kernel's memory until
    its end, and the disk would be idle."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._n, self._begun = file, 0, 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        n = self._file.write(data)
        self._n += n
        if self._n - self._begun >= _DISK_RUN and hasattr(os, "posix_fadvise"):
            # Pages that are not on disk stay, whatever the advice says; their writing begins.
            os.posix_fadvise(self._file.fileno(), self._begun, self._n - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self._n
        return n


@contextmanager
def written(path: Path, lock: Lock | None) -> Iterator[Sink]:
    """A new file of this name, which is there, and on disk, when the block has ended; before, an old one is as it was.

    Raises BadRequest if it cannot be written."""
    from llmaas.nodes.archive.envelope import sealed

    try:
        with (
            replacing(path, 0o600) as fd,
            os.fdopen(fd, "wb", _BUFFER, closefd=False) as file,
            sealed(ToDisk(file), lock) as sink,
        ):
            yield sink
    except OSError as error:
        raise BadRequest(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def read(path: Path, opener: Opener | None) -> Iterator[Source]:
    """What an archive's blocks are read from. Raises BadRequest."""
    from llmaas.nodes.archive.envelope import opened

    try:
        with open_regular(path) as file:
            yield opened(file, opener)
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror or error}") from error


def vouched(source: Source, args: argparse.Namespace) -> bool:
    """Whether the chunks of an archive are believed that another daemon coded."""
    from llmaas.nodes.archive.sealing import UnsealingSource

    by_passphrase = args.passphrase_file is not None and isinstance(source, UnsealingSource)
    return bool(args.trust_chunks or by_passphrase)


def tell(outcome: Outcome) -> bool:
    """Say what became of a context, or what is lost. False if something is that cannot be computed again."""
    from llmaas.nodes.archive.reader import Lost
    from llmaas.nodes.importing import Imported, NotImported

    match outcome:
        case Imported():
            _tell_imported(outcome)
            return True
        case NotImported(name, error):
            print_error(f"{printable(name)}: {error.message}", error.hint)
            return False
        case Lost(what, only_kv):
            if only_kv:
                print_note(f"lost: {what}; it will be computed")
            else:
                print_error(f"lost: {what}")
            return only_kv
        case _:
            assert_never(outcome)


def _tell_imported(made: Imported) -> None:
    name = printable(made.info.name)
    kept = made.taken + made.known
    print(f"{name} is here: {made.info.n_tokens} tokens in {made.info.n_messages} message(s), {kept} chunk(s)")
    if made.refused:
        print_note(f"{name}: {made.refused} chunk(s) were not taken and will be computed: {printable(made.why)}")
    if made.adapter:
        print_note(f"{name}: it used the adapter {printable(made.adapter)}, of which there is none here")
