"""``llmaas app``: apps that have a token, which keeps programs of one user apart, and quotas of apps.

Law: speaks to the daemon only. A token is printed once, alone on standard output, so that a script can take it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmaas.cli.app_quota import HELP, QUOTAS, changed, shown
from llmaas.cli.options import add_actions, connected
from llmaas.cli.out import human_age, print_json, print_note, printable, table
from llmaas.clock import RealClock
from llmaas.records import NO_APP_QUOTA

if TYPE_CHECKING:
    from llmaas.api.client import Client
    from llmaas.records import AppInfo, NewToken

_EPILOG = """\
examples:
  llmaas app add mail                    nobody is "mail" any more without the token that this prints
  llmaas app add 1001/mail               the same of another user
  llmaas app add notes --keep-contexts   what programs named "notes" have made belongs to the token's holder
  llmaas app add web --quota contexts=50 --quota priority=7
  llmaas app ls                          which apps have a token or quotas, and what they use
  llmaas app quota http disk_bytes=1G rate=20    quotas of an app, with or without a token
  llmaas app quota http rate=none        as every app again
  llmaas app rotate mail                 another token; connections made with the old one end
  llmaas app rm mail --delete-contexts   forget the token, and what the app has kept

A program gives its token in the variable LLMAAS_TOKEN, as Client(token=...), or over HTTP as OpenAI's api_key (the
header "Authorization: Bearer TOKEN"). The daemon keeps a hash of it only: nobody can print it again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    action = add_actions(parser)

    ls = action("ls", _ls, "list the apps that have a token or quotas")
    ls.add_argument("--json", action="store_true", help="print JSON")
    add = action("add", _add, "give an app a token, and print it")
    rotate = action("rotate", _rotate, "give an app another token, and print it")
    rm = action("rm", _rm, "forget an app's token and quotas")
    quota = action("quota", _quota, "show or change what an app may have")
    quota.add_argument("--json", action="store_true", help="print JSON")
    add.add_argument("--quota", action="append", metavar="KEY=VALUE", default=[], help=HELP)
    for sub in (add, rotate, rm, quota):
        sub.add_argument("name", metavar="NAME", help="a name, of the user who runs the daemon, or UID/NAME")
    quota.add_argument("changes", nargs="*", metavar="KEY=VALUE", help=f"{HELP}; none: as for every app")
    for sub, then in ((add, "whoever has the token gets"), (rm, "every program of the app's user gets")):
        what = sub.add_mutually_exclusive_group()
        for word, help in (("keep", f"{then} the contexts that the app has"), ("delete", "delete these contexts")):
            flag = f"--{word}-contexts"
            what.add_argument(flag, dest="contexts", action="store_const", const=word, default="refuse", help=help)


def run(args: argparse.Namespace) -> int:
    with connected(args, admin=True) as client:
        code: int = args.do(client, args)
    return code


def _ls(client: Client, args: argparse.Namespace) -> int:
    found = client.apps()
    if args.json:
        print_json([asdict(info) for info in found])
    elif found:
        _print(found)
    else:
        print("No app has a token yet; 'llmaas app add NAME' gives one.")
    return 0


def _print(found: list[AppInfo]) -> None:
    now = RealClock().wall()
    made = ["none" if info.created is None else human_age(max(0.0, now - info.created)) for info in found]
    rows = [[info.app, age, *shown(info)] for info, age in zip(found, made, strict=True)]
    print(table(["APP", "TOKEN MADE", *(name.upper() for name in QUOTAS)], rows, sys.stdout))


def _quota(client: Client, args: argparse.Namespace) -> int:
    from llmaas.api.caller import app_named

    app = app_named(args.name)
    before = next((info.quota for info in client.apps() if info.app == app), NO_APP_QUOTA)
    info = client.app_quota(app, changed(before, args.changes))
    if args.json:
        print_json(asdict(info))
    else:
        _print([info])
    return 0


def _add(client: Client, args: argparse.Namespace) -> int:
    quota = changed(NO_APP_QUOTA, args.quota) if args.quota else None
    return _tell(client.app_add(args.name, contexts=args.contexts, quota=quota))


def _rotate(client: Client, args: argparse.Namespace) -> int:
    return _tell(client.app_rotate(args.name))


def _tell(made: NewToken) -> int:
    print_note(f"the token of {printable(made.app)}, which is not shown again:")
    print(made.token)
    return 0


def _rm(client: Client, args: argparse.Namespace) -> int:
    client.app_remove(args.name, contexts=args.contexts)
    print(f"forgot the token of {printable(args.name)}: every program of its user can be that app now")
    return 0
