"""``llmaas demo``: eight apps, one model, and memory for a third of what they need, on this machine.

Law: a real daemon, real client processes, real conversations, and figures measured in this very run. The exit code is 0
only if everything held.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmaas.cli.demo.times import FULL_SECONDS, QUICK_SECONDS
from llmaas.cli.options import seconds

DEFAULT_OUT = Path("llmaas-demo")
_EPILOG = """\
what happens:
  1  a daemon of its own is started on a temporary socket, with memory for about a third of what follows
  2  eight apps, each a process of its own, bring a real conversation that the model reads once
  3  they take turns; each finds its context in CELLS (in use), in the POOL (RAM, coded at 4 bits) or on DISK
  4  all of them call at once
  5  the same contexts are computed again from their text, on the same daemon: what a switch saves
  6  the daemon is stopped and started again, and one app goes on where it was
  Then: a summary, a picture (PNG) and all figures (JSON).

examples:
  llmaas demo                        about two minutes; contexts are as long as that allows on this machine
  llmaas demo --quick                about 25 seconds, shorter contexts
  llmaas demo --seconds 300          longer contexts, more turns
  llmaas demo | tee demo.txt         plain lines instead of the live table

'switch' is the time from the call's admission until all of its context is in CELLS; 'first token' is what a user
waits: queue, switch, reading the new message, and the first token. Stored chunks are dropped from the kernel's
page cache before each turn, so that DISK means the disk. The picture needs matplotlib: pip install 'llmaas[demo]'.

exit codes: 0 all held   1 something did not   130 interrupted (nothing is left behind)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    time = parser.add_mutually_exclusive_group()
    time.add_argument("--seconds", type=seconds(20, 3600), help="about how long it may take (default: 120)")
    time.add_argument("--quick", action="store_true", help="the same in about 25 seconds")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--model", type=Path, metavar="FILE", help="GGUF model file (default: the packaged SmolLM2)")
    parser.add_argument(
        "--seed", type=int, default=7, help="whose turn it is, and what is drawn (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    from llmaas.cli.demo.session import show_demo  # --help does not wait for the model's library and numpy

    wanted = QUICK_SECONDS if args.quick else args.seconds or FULL_SECONDS
    return show_demo(args.model, float(wanted), args.seed, args.out)
