"""``llmaas stats``: the daemon's own figures, once or repeatedly.

Law: shows whatever the daemon sends: a new figure needs no change here.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator, Mapping

from llmaas.cli.options import add_client, connected, seconds
from llmaas.cli.out import bold, human_bytes, print_json, printable
from llmaas.errors import ConfigError

_EPILOG = """\
examples:
  llmaas stats
  llmaas stats --watch            again every 2 seconds, until Ctrl-C
  llmaas stats --json | jq .
  llmaas stats --everyone         also what each app has had, and its quotas
  llmaas stats --prometheus       for node_exporter's textfile collector; with what each app has had
"""
_HISTOGRAM = {"count", "p50", "p99"}
_CLEAR = "\x1b[H\x1b[2J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_client(parser)
    help_ = "with figures of each app; only for the user who runs the daemon"
    parser.add_argument("--everyone", action="store_true", help=help_)
    parser.add_argument("--json", action="store_true", help="print JSON; with --watch one object after the other")
    parser.add_argument(
        "--prometheus", action="store_true", help="print Prometheus' text format, as /metrics of 'llmaas http' has it"
    )
    parser.add_argument(
        "--watch", metavar="SECONDS", nargs="?", type=seconds(0.1, 86400), const=2.0, help="repeat (default: every 2 s)"
    )


def run(args: argparse.Namespace) -> int:
    if args.prometheus:
        return _prometheus(args)
    with connected(args, admin=args.everyone) as client:
        while True:
            figures = client.stats()
            if args.json:
                print_json(figures)
            else:
                if args.watch and sys.stdout.isatty():
                    print(_CLEAR, end="")
                print("\n".join(lines(figures)))
            if not args.watch:
                return 0
            sys.stdout.flush()
            threading.Event().wait(args.watch)


def _prometheus(args: argparse.Namespace) -> int:
    with connected(args, admin=True) as client:
        stats = client.stats(octaves=True)
    try:
        from llmaas.http.metrics import exposition

        print(exposition(stats).decode(), end="")
    except ImportError as error:
        raise ConfigError(
            f"--prometheus needs the package {error.name}", hint="Install it: pip install 'llmaas[http]'"
        ) from None
    return 0


def lines(figures: Mapping[str, object], group: str = "", level: int = 0) -> Iterator[str]:
    """``figures`` as indented lines: groups under their names, histograms on one line, bytes in units."""
    width = max((len(name) for name, value in figures.items() if not _is_group(value)), default=0)
    pad = "  " * level
    for name, value in figures.items():
        if isinstance(value, Mapping) and _is_group(value):
            yield f"{pad}{bold(printable(name), sys.stdout)}"
            yield from lines(value, f"{group}.{name}", level + 1)
        else:
            yield f"{pad}{printable(name).ljust(width)}  {_shown(f'{group}.{name}', value)}"


def _is_group(value: object) -> bool:
    return isinstance(value, Mapping) and not set(value) >= _HISTOGRAM


def _shown(path: str, value: object) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {_shown(f'{path}.{name}', figure)}" for name, figure in value.items())
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return printable(str(value))
    if "bytes" in path and not path.endswith(".count"):
        return human_bytes(value)
    return f"{value:.2f}" if isinstance(value, float) and not value.is_integer() else f"{int(value)}"
