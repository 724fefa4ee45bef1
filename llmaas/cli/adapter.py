"""``llmaas adapter``: the LoRA adapters that calls may name.

Law: speaks to the daemon only. The daemon reads the adapter's file, so it must have the right to.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llmaas.cli.options import add_actions, connected
from llmaas.cli.out import human_bytes, print_json, printable, table
from llmaas.config_file import expanded

if TYPE_CHECKING:
    from llmaas.api.client import Client

_EPILOG = """\
examples:
  llmaas adapter ls                      what calls may name, and what is loaded now
  llmaas adapter add terse terse.gguf    also after a restart; another file of that name is replaced
  llmaas adapter rm terse                contexts that use it stay, and need another one

Files are what llama.cpp's convert_lora_to_gguf.py writes, for the model that is served. add and rm are for the user
who runs the daemon. Adapters can also stand in the setting 'adapters', which wins when the daemon starts.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    action = add_actions(parser)

    action("ls", _ls, "list adapters").add_argument("--json", action="store_true", help="print JSON")
    add = action("add", _add, "register a GGUF file under a name")
    add.add_argument("name")
    add.add_argument("path", type=Path)
    action("rm", _rm, "forget an adapter; its file stays").add_argument("name")


def run(args: argparse.Namespace) -> int:
    with connected(args, admin=True) as client:
        code: int = args.do(client, args)
    return code


def _ls(client: Client, args: argparse.Namespace) -> int:
    found = client.adapters()
    if args.json:
        print_json([asdict(info) for info in found])
    elif found:
        rows = [[f.name, human_bytes(f.size_bytes), "yes" if f.loaded else "no", f.fingerprint, f.path] for f in found]
        print(table(["NAME", "SIZE", "LOADED", "FINGERPRINT", "PATH"], rows, sys.stdout))
    else:
        print("No adapters yet; 'llmaas adapter add NAME PATH' registers one.")
    return 0


def _add(client: Client, args: argparse.Namespace) -> int:
    info = client.adapter_add(args.name, expanded(args.path).absolute())
    print(f"{printable(info.name)}: {human_bytes(info.size_bytes)}, {info.fingerprint}")
    return 0


def _rm(client: Client, args: argparse.Namespace) -> int:
    client.adapter_remove(args.name)
    print(f"forgot {printable(args.name)}; contexts that use it need another one")
    return 0
