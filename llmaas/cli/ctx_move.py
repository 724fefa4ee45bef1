"""``llmaas ctx move``: contexts go to another of several models, or to another machine.

Law: speaks to daemons only. One context that cannot be moved keeps none of the others where they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmaas.api.transfer_messages import MOVE_WAYS
from llmaas.cli.contexts import meant
from llmaas.cli.options import connected
from llmaas.cli.out import human_bytes, print_error, printable
from llmaas.errors import BadRequest, CallerError, MachineError

if TYPE_CHECKING:
    from llmaas.api.client import Client
    from llmaas.records import ContextId, ContextInfo


def add_action(action: Callable[[str, Callable[..., int], str], argparse.ArgumentParser]) -> None:
    move = action("move", _move, "take contexts to another of the models that are served, or to another node")
    move.add_argument("context", nargs="+")
    where = move.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="MODEL", help="a model's name; --model says where they are now")
    where.add_argument("--to-node", metavar="NODE", help="a machine's name, as 'llmaas node ls' says it")
    move.add_argument("--keep", action="store_true", help="with --to: leave the originals where they are")
    move.add_argument(
        "--way",
        choices=MOVE_WAYS,
        help="with --to-node: its KV goes as coded chunks, or is computed there from its tokens, or both, each part as"
        " is quicker (the default)",
    )
    move.add_argument("--as", dest="new_name", metavar="NAME", help="with --to-node: what it is called there")


def _move(client: Client, args: argparse.Namespace) -> int:
    if (args.keep and args.to is None) or ((args.new_name is not None or args.way) and args.to_node is None):
        raise BadRequest("--keep is for --to MODEL, --as and --way are for --to-node NODE")
    if args.new_name is not None and len(args.context) > 1:
        raise BadRequest("--as names one context", hint="Move them one by one.")
    contexts = client.contexts()
    wanted = {info.id: info for info in (meant(word, contexts) for word in args.context)}
    return _to_node(client, args, wanted) if args.to is None else _to_model(client, args, wanted)


def _to_node(client: Client, args: argparse.Namespace, wanted: dict[ContextId, ContextInfo]) -> int:
    code = 0
    for context, info in wanted.items():
        try:
            moved = client.move(context, args.to_node, name=args.new_name, way=args.way or "both")
        except (MachineError, CallerError) as error:
            print_error(f"{printable(info.name)}: {error.message}", error.hint)
            code = 1
        else:
            chunks = f"{moved.n_chunks} chunks ({human_bytes(moved.n_bytes)})"
            print(f"{printable(moved.name)} is at {moved.node}: {moved.n_tokens} tokens, {chunks}")
    return code


def _to_model(client: Client, args: argparse.Namespace, wanted: dict[ContextId, ContextInfo]) -> int:
    """Exported first: there may be room for one of the models only."""
    exported = {context: client.export_context(context) for context in wanted}
    moved = []
    with connected(args, model=args.to) as other:
        for context, info in wanted.items():
            try:
                made = other.import_context(exported[context])
            except (MachineError, CallerError) as error:
                print_error(f"{printable(info.name)}: {error.message}", error.hint)
            else:
                moved.append(context)
                print(f"{printable(made.name)} is at {printable(args.to)}: {made.n_tokens} tokens")
    for context in () if args.keep else moved:
        client.delete(context)
    return int(len(moved) < len(wanted))
