"""``llmaas node``: other machines that this one is paired with, to which contexts can go.

Law: works on files of the data folder; no daemon need run, and one that runs knows of a change from the next connection
on. A node is known by its certificate, which a person brings or compares: nothing is believed because it came first.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmaas.cli.options import add_actions, add_settings, configured
from llmaas.cli.out import print_json, print_note, printable, table
from llmaas.data_folder import main_folder
from llmaas.errors import BadRequest, LlmaasError, NodeUnreachable, NotTrusted

if TYPE_CHECKING:
    from llmaas.nodes.card import NodeCard
    from llmaas.nodes.pinned import PinnedNode

_EPILOG = """\
examples:
  llmaas node show                              this node's card, for the other one, and its fingerprint
  llmaas node pair desk llmaas-node-1:MIIB...   pin the node whose card that is
  llmaas node pair desk desk.card --address 192.168.1.5:7411   from a file; where it listens
  llmaas node pair desk 192.168.1.5:7411        ask the node itself; you compare fingerprints
  llmaas node ls --check                        which nodes, and whether each answers
  llmaas node rm desk                           it is nobody from now on

Both nodes must be paired with each other. The one that is to be reached needs the setting nodes, such as
nodes = "0.0.0.0:7411"; without it the daemon does not listen. What a paired node may do: docs/security.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    action = add_actions(parser, of_client=False)
    show = action("show", _show, "print this node's card and fingerprint")
    pair = action("pair", _pair, "pin another node's certificate, or give it another address")
    pair.add_argument("name", metavar="NAME", help="what it is called here")
    pair.add_argument("card", metavar="CARD", help="its card, a file with it, - for stdin, or HOST:PORT")
    pair.add_argument("--address", metavar="HOST:PORT", help="where it listens, if its card does not say so")
    pair.add_argument("--fingerprint", metavar="CODE", help="refuse it unless it has this one, and ask nothing")
    ls = action("ls", _ls, "list the nodes that this one is paired with")
    ls.add_argument("--check", action="store_true", help="ask each whether it answers")
    ls.add_argument("--json", action="store_true", help="print JSON")
    rm = action("rm", _rm, "forget a node")
    rm.add_argument("name", metavar="NAME")
    for sub in (show, pair, ls, rm):
        add_settings(sub, ["data_dir", "nodes"] if sub is show else ["data_dir"])


def run(args: argparse.Namespace) -> int:
    code: int = args.do(args)
    return code


def _data_dir(args: argparse.Namespace) -> Path:
    return main_folder(configured(args).data_dir)


def _show(args: argparse.Namespace) -> int:
    from llmaas.nodes.card import NodeCard, fingerprint
    from llmaas.nodes.identity import own_identity

    own, nodes = own_identity(_data_dir(args)), configured(args).nodes
    everywhere = nodes is None or nodes.rpartition(":")[0] in ("0.0.0.0", "[::]")
    print(NodeCard(own.certificate, "" if everywhere or nodes is None else nodes).text())
    print_note(f"fingerprint {fingerprint(own.certificate)}")
    if nodes is None:
        print_note("this node does not listen for others: it has no setting 'nodes'")
    return 0


def _pair(args: argparse.Namespace) -> int:
    from llmaas.nodes.certificate import check_certificate
    from llmaas.nodes.identity import own_identity
    from llmaas.nodes.pinned import PinnedNode, PinnedNodes

    data_dir = _data_dir(args)
    own = own_identity(data_dir)
    card, is_fetched = _card(args.card)
    check_certificate(card.certificate)
    if card.certificate == own.certificate:
        raise BadRequest("this is the card of this very node", hint="'llmaas node show' of the other one prints its.")
    node = PinnedNode(args.name, card.certificate, args.address or card.address)
    if args.fingerprint is not None:
        if _plain(args.fingerprint) != _plain(node.fingerprint):
            raise NotTrusted(f"its fingerprint is {node.fingerprint}, not {printable(args.fingerprint)}")
    elif is_fetched:
        _compare(node)
    PinnedNodes(data_dir).add(node)
    print(f"paired with {node.name}: {node.fingerprint}")
    print_note(
        f"{node.name} must be paired with this node, too: there, 'llmaas node pair' with 'llmaas node show' of here"
    )
    return 0


def _plain(fingerprint: str) -> str:
    return re.sub(r"[\s-]", "", fingerprint).lower()


def _card(word: str) -> tuple[NodeCard, bool]:
    """What the word stands for; True if the network said so."""
    from llmaas.nodes.card import read_card

    if word == "-":
        return read_card(sys.stdin.read(1 << 16)), False
    if word.startswith("llmaas-node-"):
        return read_card(word), False
    if re.fullmatch(r"[^/]+:[0-9]+", word):
        return _fetched(word), True
    try:
        with Path(word).open(encoding="ascii") as file:
            return read_card(file.read(1 << 16)), False
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{word} is no card, no HOST:PORT, and no file that can be read: {error}") from None


def _fetched(address: str) -> NodeCard:
    """What listens there; nothing is said to it, and who it is remains to be seen."""
    from llmaas.nodes.card import NodeCard, check_address, host_and_port

    host, port = host_and_port(check_address(address))
    try:
        found = ssl.get_server_certificate((host, port), timeout=10)
    except OSError as error:
        raise NodeUnreachable(f"no node answers at {address}: {error.strerror or error}") from error
    return NodeCard(ssl.PEM_cert_to_DER_cert(found), address)


def _compare(node: PinnedNode) -> None:
    """Raises BadRequest, NotTrusted."""
    if not sys.stdin.isatty():
        raise BadRequest(
            f"somebody must compare fingerprints: what answers at {node.address} has {node.fingerprint}",
            hint="Give --fingerprint with what 'llmaas node show' says there.",
        )
    print(f"What answers at {node.address} has the fingerprint {node.fingerprint}.", file=sys.stderr)
    print("Does 'llmaas node show' of that machine say the same? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotTrusted("nothing was paired", hint="If the fingerprints differ, somebody is between the two.")


def _ls(args: argparse.Namespace) -> int:
    from llmaas.nodes.pinned import PinnedNodes

    data_dir = _data_dir(args)
    nodes = sorted(PinnedNodes(data_dir).read().values(), key=lambda node: node.name)
    states = {node.name: _state(data_dir, node) if args.check else "" for node in nodes}
    if args.json:
        maps = [{"name": n.name, "address": n.address, "fingerprint": n.fingerprint} for n in nodes]
        print_json([{**one, "state": states[one["name"]]} if args.check else one for one in maps])
    elif nodes:
        head = ["NAME", "ADDRESS", "FINGERPRINT", *(["STATE"] if args.check else [])]
        rows = [[n.name, n.address or "none", n.fingerprint, *([states[n.name]] if args.check else [])] for n in nodes]
        print(table(head, rows, sys.stdout))
    else:
        print("No nodes; 'llmaas node pair' pins one.")
    return 0


def _state(data_dir: Path, node: PinnedNode) -> str:
    from llmaas.nodes.identity import own_identity
    from llmaas.nodes.link import connect_node

    async def greet() -> str:
        client = await connect_node(own_identity(data_dir), node)
        await client.close()
        return f"answers, serves {printable(str(client.facts.get('model')))[:60]}"

    if not node.address:
        return "only begins connections"
    try:
        return asyncio.run(greet())
    except LlmaasError as error:
        return error.message


def _rm(args: argparse.Namespace) -> int:
    from llmaas.nodes.pinned import PinnedNodes

    node = PinnedNodes(_data_dir(args)).remove(args.name)
    print(f"{node.name} ({node.fingerprint}) is forgotten")
    return 0
