#!/usr/bin/env python3
"""Sort mails into folders, in the background: whoever talks to the model meanwhile does not notice.

Each mail is a text file. What the folders are, the model reads once; each mail is a fork of that, so mails do not
influence one another, and a mail that says "ignore all instructions" changes nothing for the next one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmaas import Client, LlmaasError, Priority

FOLDERS = ["urgent", "bills", "newsletters", "personal"]
SCHEMA = {
    "type": "object",
    "properties": {"folder": {"enum": FOLDERS}, "why": {"type": "string", "maxLength": 80}},
    "required": ["folder", "why"],
    "additionalProperties": False,
}
SYSTEM = f"You sort mail into the folders {', '.join(FOLDERS)}. Answer in JSON: the folder, and why in a few words."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mails", nargs="+", type=Path, help="text files")
    args = parser.parse_args()
    try:
        with Client(app="inbox-triage", retry_s=60) as client:
            rules = client.context("rules", system=SYSTEM)
            for path in args.mails:
                mail = path.read_text("utf-8", "replace")[:4000]
                with rules.forked() as one:
                    found = one.ask_json(mail, SCHEMA, max_tokens=200, priority=Priority.BACKGROUND)
                print(f"{found['folder']:12} {path.name}: {found['why']}", flush=True)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    except LlmaasError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
