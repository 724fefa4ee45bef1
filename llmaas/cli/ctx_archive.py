"""``llmaas ctx export``, ``import`` and ``keygen``: contexts to a file and back.

Law: as ``ctx``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from llmaas.cli import archives
from llmaas.cli.contexts import meant
from llmaas.cli.options import connected
from llmaas.cli.out import human_bytes, print_note, printable
from llmaas.clock import RealClock

Action = Callable[..., argparse.ArgumentParser]


def add_actions(action: Action) -> None:
    """``action`` is that of ``options.add_actions``."""
    export = action("export", _export, "write a context to a file: messages, tokens, and chunks")
    export.add_argument("context")
    export.add_argument("file", type=Path)
    export.add_argument("--no-chunks", action="store_true", help="its KV will be computed where it arrives")
    archives.add_lock(export)
    import_ = action("import", _import, "make the contexts of an archive")
    import_.add_argument("file", type=Path)
    import_.add_argument("--as", dest="name", metavar="NAME", help="another name than it had")
    archives.add_opener(import_)
    keygen = action("keygen", _keygen, "make a pair of keys: the secret one into a file, the public one is printed")
    keygen.add_argument("file", type=Path)
    for sub in (export, import_, keygen):
        sub.set_defaults(alone=True)  # they connect by themselves


def _export(args: argparse.Namespace) -> int:
    from llmaas.nodes.archive.writer import ArchiveWriter
    from llmaas.nodes.export import export_context

    with connected(args) as client:
        info = meant(args.context, client.contexts())
        with archives.written(args.file, archives.lock_of(args)) as sink:
            writer = ArchiveWriter(sink, RealClock().wall())
            done = export_context(client, info, writer, chunks=not args.no_chunks)
            writer.close()
    size = human_bytes(args.file.stat().st_size)
    print(f"{printable(done.name)}: {done.n_tokens} tokens, {done.n_chunks} chunk(s), {size} in {args.file}")
    if done.n_missing:
        print_note(f"{done.n_missing} chunk(s) are not stored; they will be computed where it arrives")
    return 0


def _import(args: argparse.Namespace) -> int:
    from llmaas.nodes.archive.reader import ArchiveReader
    from llmaas.nodes.importing import ArchiveImport

    whole = True
    with connected(args) as client, archives.read(args.file, archives.opener_of(args)) as source:
        adapters = {adapter.name for adapter in client.adapters()}
        trusted = archives.vouched(source, args)
        arriving = ArchiveImport(client, name=args.name, adapters=adapters, trusted=trusted)
        for outcome in arriving.run(ArchiveReader(source)):
            whole &= archives.tell(outcome)
    return 0 if whole else 1


def _keygen(args: argparse.Namespace) -> int:
    print(archives.key_pair(args.file).recipient)
    return 0
