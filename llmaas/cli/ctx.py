"""``llmaas ctx``: list, show, copy, cut, take over and delete contexts.

Law: speaks to the daemon only; it never opens the store.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, TextIO

from llmaas.cli import ctx_archive, ctx_move
from llmaas.cli.contexts import meant
from llmaas.cli.options import add_actions, connected
from llmaas.cli.out import bold, human_age, print_error, print_json, printable, shortened, table
from llmaas.clock import RealClock
from llmaas.errors import BadRequest, CallerError, MachineError

if TYPE_CHECKING:
    from llmaas.api.client import Client
    from llmaas.records import ContextInfo

_EPILOG = """\
examples:
  llmaas ctx ls                         this app's contexts and where their tokens are
  llmaas ctx ls --all                   with the anonymous ones, which the daemon made for stateless requests
  llmaas ctx ls --everyone --json       all apps'; --everyone uses the admin socket
  llmaas ctx show notes                 the conversation
  llmaas ctx show notes --json          the same for a program
  llmaas ctx fork notes notes-2         a copy that shares its chunks
  llmaas ctx truncate notes --messages 4    back to the first four messages
  llmaas ctx truncate notes --tokens 20     back to the first 20 tokens
  llmaas ctx migrate notes              another model made it: take the conversation over to this one
  llmaas ctx migrate --all --everyone   the same for all contexts of all apps, after a change of model
  llmaas ctx move notes --to coder      take it to another of several models: the same tokens if those are alike
  llmaas ctx move notes --to-node desk  take it to another machine, which is paired with this one ('llmaas node')
  llmaas ctx export notes notes.archive --no-chunks   its messages and tokens, in a file
  llmaas ctx import notes.archive --as notes-3        and back, here or at another daemon
  llmaas ctx keygen my.key              a pair of keys, for archives that only one machine can open
  llmaas ctx hint notes                 it will be used soon: bring it back to the engine now
  llmaas ctx rm notes scratch           delete two, for good

Name a context by its name, its id, or the first digits of its id.
In the list, CELLS, POOL, DISK and NONE count tokens by where their best copy is: in the engine, coded in RAM,
on disk, or nowhere (they are recomputed from the text). "with NAME": the context uses that LoRA adapter. "goes
after 2 h": it is deleted when it has not been used for so long, as its app wished.
Names of more than 40 characters are cut; --json has them whole.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    action = add_actions(parser)

    ls = action("ls", _ls, "list contexts, last used first")
    ls.add_argument("--json", action="store_true", help="print JSON")
    ls.add_argument("--all", action="store_true", help="with the anonymous ones, whose names begin with ~")
    show = action("show", _show, "show a context and its conversation")
    show.add_argument("context")
    show.add_argument("--json", action="store_true", help="print JSON")
    rm = action("rm", _rm, "delete contexts and their chunks, for good")
    rm.add_argument("context", nargs="+")
    migrate = action("migrate", _migrate, "take conversations of another model over to the one that is served")
    migrate.add_argument("context", nargs="*")
    migrate.add_argument("--all", action="store_true", help="all contexts that another tokenizer made")
    for sub in (ls, show, migrate, rm):
        sub.add_argument("--everyone", action="store_true", help="of all apps; only for the user who runs the daemon")
    ctx_archive.add_actions(action)
    ctx_move.add_action(action)
    fork = action("fork", _fork, "copy a context under a new name; the copy shares its chunks")
    fork.add_argument("context")
    fork.add_argument("name")
    hint = action("hint", _hint, "say that a context will be used soon; it is brought back to the engine")
    hint.add_argument("context")
    truncate = action("truncate", _truncate, "cut a context's end off")
    truncate.add_argument("context")
    keep = truncate.add_mutually_exclusive_group(required=True)
    keep.add_argument("--messages", type=int, metavar="N", help="keep the first N messages")
    keep.add_argument("--tokens", type=int, metavar="N", help="keep the first N tokens")


def run(args: argparse.Namespace) -> int:
    code: int
    if getattr(args, "alone", False):
        code = args.do(args)
    else:
        with connected(args, admin=getattr(args, "everyone", False)) as client:
            code = args.do(client, args)
    return code


def as_map(info: ContextInfo) -> dict[str, Any]:
    """A context as JSON shows it."""
    tiers = dict(zip(("cells", "pool", "disk", "none"), info.tiers, strict=True))
    return {
        "id": info.id,
        "app": info.app,
        "name": info.name,
        "tokens": info.n_tokens,
        "messages": info.n_messages,
        "created": info.created,
        "last_used": info.last_used,
        "usable": info.usable,
        "anonymous": info.anonymous,
        "adapter": info.adapter,
        "ttl": info.ttl,
        "tiers": tiers,
    }


def listing(contexts: list[ContextInfo], now: float, *, with_app: bool, stream: TextIO) -> str:
    """The table of ``ctx ls``. ``now`` is wall-clock seconds."""
    head = ["NAME", *(["APP"] if with_app else []), "ID", "TOKENS", "MSGS", "CELLS", "POOL", "DISK", "NONE", "USED"]
    rows = [
        [shortened(c.name), *([c.app] if with_app else []), c.id, c.n_tokens, c.n_messages, *c.tiers, _used(c, now)]
        for c in contexts
    ]
    return table(head, rows, stream)


def _used(info: ContextInfo, now: float) -> str:
    age = human_age(max(0.0, now - info.last_used))
    if info.adapter:
        age = f"{age} with {printable(info.adapter)}"
    if info.ttl is not None:
        age = f"{age}, goes after {human_age(info.ttl) if info.ttl >= 2 else f'{info.ttl:g} s'}"
    return age if info.usable else f"{age} (made with another tokenizer, or damaged)"


def _ls(client: Client, args: argparse.Namespace) -> int:
    known = sorted(client.contexts(everyone=args.everyone), key=lambda c: -c.last_used)
    contexts = [info for info in known if args.all or not info.anonymous]
    if args.json:
        print_json([as_map(c) for c in contexts])
    elif contexts:
        print(listing(contexts, RealClock().wall(), with_app=args.everyone, stream=sys.stdout))
    elif known:
        print(f"No contexts with a name; 'llmaas ctx ls --all' lists {len(known)} anonymous ones.")
    else:
        whose = "" if args.everyone else f" of app {client.server['app']}"
        print(f"No contexts{whose} yet; 'llmaas chat NAME' makes one.")
    return 0


def _show(client: Client, args: argparse.Namespace) -> int:
    info = meant(args.context, client.contexts(everyone=args.everyone))
    detail = client.show(info.id, everyone=args.everyone)
    if args.json:
        messages = [{"role": m.role, "content": m.content} for m in detail.messages]
        print_json({**as_map(detail.info), "conversation": messages})
        return 0
    print(listing([detail.info], RealClock().wall(), with_app=args.everyone, stream=sys.stdout))
    for message in detail.messages:
        print(f"\n{bold(printable(message.role), sys.stdout)}\n{printable(message.content, keep=chr(10))}")
    return 0


def _migrate(client: Client, args: argparse.Namespace) -> int:
    """One context that cannot be taken over keeps none of the others from it."""
    if args.all == bool(args.context):
        raise BadRequest(
            "name the contexts to take over, or give --all", hint="'llmaas ctx migrate --help' has examples."
        )
    contexts = client.contexts(everyone=args.everyone)
    wanted = [c for c in contexts if not c.usable] if args.all else [meant(word, contexts) for word in args.context]
    code = 0
    for info in wanted:
        try:
            now = client.migrate(info.id, everyone=args.everyone)
        except (MachineError, CallerError) as error:
            print_error(f"{printable(info.name)}: {error.message}", error.hint)
            code = 1
        else:
            done = "is of this tokenizer already" if info.usable else "was taken over"
            print(f"{printable(now.name)} {done}: {now.n_tokens} tokens")
    if not wanted:
        print("Every context is of the served model's tokenizer.")
    return code


def _rm(client: Client, args: argparse.Namespace) -> int:
    contexts = client.contexts(everyone=args.everyone)
    # All words are looked up before anything is deleted, so that a typo deletes nothing.
    doomed = {info.id: info for info in (meant(word, contexts) for word in args.context)}
    for info in doomed.values():
        client.delete(info.id, everyone=args.everyone)
        print(f"deleted {printable(info.name)} ({info.n_tokens} tokens)")
    return 0


def _fork(client: Client, args: argparse.Namespace) -> int:
    info = client.fork(meant(args.context, client.contexts()).id, name=args.name)
    print(f"{printable(info.name)} {info.id}: {info.n_tokens} tokens")
    return 0


def _hint(client: Client, args: argparse.Namespace) -> int:
    info = meant(args.context, client.contexts())
    client.hint(info.id)
    print(f"{printable(info.name)} will be brought back to the engine when no call waits")
    return 0


def _truncate(client: Client, args: argparse.Namespace) -> int:
    info = meant(args.context, client.contexts())
    info = client.truncate(info.id, n_tokens=args.tokens, n_messages=args.messages)
    print(f"{printable(info.name)}: {info.n_tokens} tokens in {info.n_messages} message(s) are left")
    return 0
