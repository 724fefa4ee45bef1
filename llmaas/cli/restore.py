"""``llmaas restore``: the contexts of a backup.

Law: as ``ctx_archive``. A context that is there already stays as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llmaas.cli import archives
from llmaas.cli.options import add_client, connected
from llmaas.cli.out import print_note, printable
from llmaas.errors import BadRequest, ContextExists

if TYPE_CHECKING:
    from llmaas.nodes.importing import Outcome

_EPILOG = """\
examples:
  llmaas restore ~/llmaas-backup          all contexts that were there at the last backup
  llmaas restore all.archive              all contexts of a file

A context of a name that is taken is left as it is: rename or delete that one first.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_client(parser)
    parser.add_argument("path", type=Path, help="a folder or a file that 'llmaas backup' wrote")
    archives.add_opener(parser)


def run(args: argparse.Namespace) -> int:
    from llmaas.nodes import backup_index
    from llmaas.nodes.archive.reader import ArchiveReader
    from llmaas.nodes.backup import Restore
    from llmaas.nodes.importing import ArchiveImport

    is_folder = args.path.is_dir()
    paths = backup_index.archives(args.path) if is_folder else [args.path]
    if not paths:
        raise BadRequest(f"there is no archive in {args.path}")
    index = backup_index.read_index(args.path) if is_folder else None
    if is_folder and index is None:
        print_note("the backup's index is missing or damaged: contexts that were deleted may come back, too")
    known = (lambda name: index.name(name) in index.contexts) if index is not None else lambda name: True
    opener, whole = archives.opener_of(args), True
    with connected(args) as client:
        adapters = {adapter.name for adapter in client.adapters()}
        restoring: Restore | None = None
        for path in reversed(paths):
            with archives.read(path, opener) as source:
                if restoring is None:
                    trusted = archives.vouched(source, args)
                    restoring = Restore(ArchiveImport(client, adapters=adapters, trusted=trusted), known)
                for outcome in restoring.archive(ArchiveReader(source)):
                    whole &= _tell(outcome)
        assert restoring is not None
        for outcome in restoring.end():
            whole &= archives.tell(outcome)
    return 0 if whole else 1


def _tell(outcome: Outcome) -> bool:
    """As ``archives.tell``; that a context is there already is no failure."""
    from llmaas.nodes.importing import NotImported

    if isinstance(outcome, NotImported) and isinstance(outcome.error, ContextExists):
        print_note(f"{printable(outcome.name)} is there already, and stays as it is")
        return True
    return archives.tell(outcome)
