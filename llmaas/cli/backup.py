"""``llmaas backup``: all contexts of an app, into a folder or a file.

Law: as ``ctx_archive``. What is in the folder is never changed, but for its index.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmaas.cli import archives
from llmaas.cli.options import add_client, connected
from llmaas.cli.out import human_bytes, print_error, printable
from llmaas.clock import RealClock
from llmaas.errors import BadRequest

if TYPE_CHECKING:
    from llmaas.nodes.backup import BackedUp

SUFFIX = ".archive"

_EPILOG = """\
examples:
  llmaas backup ~/llmaas-backup           into a folder; again tomorrow: only what is new is written
  llmaas backup all.archive               into one file, whose name ends in .archive
  llmaas backup ~/home-backup --app home  another app's contexts, into a folder of its own

Messages, tokens and chunks of all contexts that have a name. 'llmaas restore' brings them back. Contexts that were
deleted since the last backup are not brought back, though older archives of the folder hold them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_client(parser)
    parser.add_argument("path", type=Path, help="a folder, which is made, or a file NAME.archive")
    archives.add_lock(parser)


def run(args: argparse.Namespace) -> int:
    from llmaas.nodes.backup import back_up, back_up_all

    lock, now = archives.lock_of(args), RealClock().wall()
    with connected(args) as client:
        if args.path.suffix == SUFFIX and not args.path.is_dir():
            with archives.written(args.path, lock) as sink:
                done = back_up_all(client, sink, now)
            done.archive = args.path
        else:
            made = _folder(args.path)
            done = back_up(client, made, partial(archives.written, lock=lock), now)
    return _tell(done)


def _folder(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"cannot make {path}: {error.strerror}") from error
    return path


def _tell(done: BackedUp) -> int:
    for name, error in done.failed:
        print_error(f"{printable(name)}: {error.message}", error.hint)
    if done.archive is None:
        print(f"{done.n_contexts} contexts, and nothing has changed")
    else:
        size = human_bytes(done.archive.stat().st_size)
        print(
            f"{done.n_contexts} contexts, {done.n_changed} of them written with {done.n_chunks} chunk(s): "
            f"{size} in {done.archive}"
        )
    return 1 if done.failed else 0
