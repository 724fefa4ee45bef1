"""``llmaas limit``: set how many tokens per second an app, or all together, may generate.

Law: a change holds until the daemon ends; it starts again with the settings ``rate`` and ``app_rate``. ``--save``
writes the first of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmaas.cli.options import add_client, connected
from llmaas.cli.out import print_json
from llmaas.cli.save import add_save, save_settings
from llmaas.config.settings import SETTINGS
from llmaas.errors import ConfigError

_EPILOG = """\
examples:
  llmaas limit 20                      all requests together generate 20 tokens a second at most
  llmaas limit 5 --of 1000/summaries   the app "summaries" of user 1000 generates 5 at most
  llmaas limit none                    as fast as it goes
  llmaas limit 20 --save               now, and after the daemon's next start

A prompt counts against the limit of all together by the time that it takes; the limit of an app counts only the
tokens that it generates. Only the user who runs the daemon may set limits. They hold until the daemon ends, unless
--save writes them into the settings file; that holds for the limit of all together.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_client(parser)
    parser.add_argument("rate", metavar="RATE", help="tokens per second, or none")
    parser.add_argument("--of", metavar="UID/APP", help="the app that is limited; without it, all together")
    add_save(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    kind = SETTINGS["rate"].kind
    try:
        rate = kind.read(args.rate, Path())
    except ValueError:
        raise ConfigError(f"RATE is {args.rate!r}; it must be {kind.allowed}") from None
    if args.save and args.of is not None:
        hint = "The setting app_rate limits each app; one app's limit can be set while the daemon runs only."
        raise ConfigError("--save is for the limit of all together, not for --of", hint=hint)
    with connected(args, admin=True) as client:
        found = client.limit(args.of, rate)
    if args.save:
        save_settings(args, {"rate": "none" if rate is None else rate})
    if args.json:
        print_json(found)
        return 0
    limits = {"all together": found["rate"], **found["apps"]}
    for who, limit in limits.items():
        print(f"{who:30} {'no limit' if limit is None else f'{limit:g} tokens/s'}")
    return 0
