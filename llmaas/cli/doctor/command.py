"""``llmaas doctor``: examines every part and prints a line for each finding: ok, warn or fail, and what to do.

Law: changes nothing, unless ``--repair`` is given; works with and without a running daemon.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from llmaas.cli.doctor.checks import examine
from llmaas.cli.doctor.finding import Finding
from llmaas.cli.options import add_settings, loaded
from llmaas.cli.out import coloured, print_json, printable
from llmaas.config.settings import SETTINGS

_EPILOG = """\
examples:
  llmaas doctor
  llmaas doctor --model m.gguf --cells 16384    would this fit?
  llmaas doctor --deep                          read every stored chunk
  llmaas doctor --repair                        mend the store (no daemon may be running)

exit codes: 0 nothing failed (warnings do not count), 1 something failed, 2 wrong configuration.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--deep", action="store_true", help="check the checksum of every stored chunk, and that it opens"
    )
    parser.add_argument("--repair", action="store_true", help="mend what is wrong with the store")
    add_settings(parser, [name for name in SETTINGS if name != "max_tokens"])


def run(args: argparse.Namespace) -> int:
    findings = []
    for finding in examine(loaded(args), os.environ, deep=args.deep, repair=args.repair):
        findings.append(finding)
        if not args.json:
            show(finding)
            sys.stdout.flush()
    failed = [f for f in findings if f.level == "fail"]
    if args.json:
        print_json({"ok": not failed, "findings": [dataclasses.asdict(f) for f in findings]})
    elif failed:
        print(f"\n{len(failed)} of {len(findings)} checks failed.")
    return 1 if failed else 0


def show(finding: Finding) -> None:
    level = coloured(finding.level.ljust(4), finding.level, sys.stdout)
    print(f"{level}  {finding.about:<7} {printable(finding.text)}")
    if finding.hint:
        print(f"{'':14}{printable(finding.hint)}")
