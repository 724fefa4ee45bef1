#!/usr/bin/env python3
"""A shell command for what you want to do. It is printed and never run: look at it first.

The context lasts, so "and now sorted by size" works. With --new it is begun anew.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
from pathlib import Path

from llmaas import Client, LlmaasError, UnknownContext

SCHEMA = {
    "type": "object",
    "properties": {
        "command": {"type": "string", "minLength": 1, "maxLength": 200},
        "explanation": {"type": "string", "maxLength": 200},
        "changes_files": {"type": "boolean"},
    },
    "required": ["command", "explanation", "changes_files"],
    "additionalProperties": False,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help='what it should do, e.g. "find files over 100 MB"')
    parser.add_argument("--new", action="store_true", help="forget what was asked before")
    args = parser.parse_args()
    shell = Path(os.environ.get("SHELL", "sh")).name
    system = f"You write one command line for {shell} on {platform.system()}. Answer in JSON."
    try:
        with Client(app="shell-helper", retry_s=30) as client:
            if args.new:
                with contextlib.suppress(UnknownContext):
                    client.delete("commands")
            commands = client.context("commands", system=system)
            found = commands.ask_json(args.task, SCHEMA, max_tokens=800, on_full="shift")
    except KeyboardInterrupt:
        return 130
    except LlmaasError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)
        return 1
    warning = " (changes files)" if found["changes_files"] else ""
    print(f"# {found['explanation']}{warning}", file=sys.stderr)
    print(found["command"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
