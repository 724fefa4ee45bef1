"""``llmaas budget``: show and change what the daemon may use of RAM and disk, while it runs.

Law: sizes are read as the settings of the same name are. A change holds until the daemon ends; it starts again with
what the file and the flags say. ``--save`` writes the change into the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llmaas.cli.options import add_client, connected
from llmaas.cli.out import print_json
from llmaas.cli.save import add_save, save_settings
from llmaas.cli.stats import lines
from llmaas.config.kinds import show_bytes
from llmaas.config.settings import SETTINGS, flag
from llmaas.errors import ConfigError

_EPILOG = """\
examples:
  llmaas budget                        what holds now, and why
  llmaas budget --pool 64M             drop chunks from RAM until 64 MiB are left
  llmaas budget --disk 2G              drop the coldest contexts' chunks from disk
  llmaas budget --pool 1G --disk none
  llmaas budget --pool 1G --save       now, and after the daemon's next start

Nothing is lost: what is dropped is read from disk or computed again when it is needed.
Only the user who runs the daemon may change budgets. A change holds until the daemon ends, unless --save writes it
into the settings file.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_client(parser)
    for name, what in (("pool", "pool_bytes"), ("disk", "disk_bytes")):
        kind = SETTINGS[what].kind
        parser.add_argument(f"--{name}", metavar=kind.metavar, help=f"new {what}: {kind.allowed}")
    add_save(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    wanted = {what: _bytes(what, getattr(args, what.removesuffix("_bytes"))) for what in ("pool_bytes", "disk_bytes")}
    changed = {what: show_bytes(nbytes) for what, nbytes in wanted.items() if nbytes is not None}
    if args.save and not changed:
        raise ConfigError("there is nothing to save", hint="Give --pool or --disk beside --save.")
    with connected(args, admin=True) as client:
        found: dict[str, Any] = client.budget(**wanted)
    if args.save:
        save_settings(args, changed)
    if args.json:
        print_json(found)
    else:
        print("\n".join(lines(found)))
    return 0


def _bytes(name: str, given: str | None) -> int | None:
    if given is None:
        return None
    kind = SETTINGS[name].kind
    try:
        nbytes: int = kind.read(given, Path())
    except ValueError:
        short = flag(name.removesuffix("_bytes"))
        raise ConfigError(f"{short} is {given!r}; it must be {kind.allowed}") from None
    return nbytes
