"""The nodes that this one is paired with: name, certificate and address of each, in a file.

Law: whoever is not in the file is nobody. The daemon reads it at each connection, so that a change counts from the next
one on. A file that cannot be understood is an error, never an empty one: else a damaged disk would unpair, or worse.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path

from llmaas.errors import BadRequest, MachineError, UnknownNode
from llmaas.frozen import frozen
from llmaas.nodes.card import MOST_CERTIFICATE, check_address, fingerprint
from llmaas.nodes.identity import node_folder
from llmaas.records import SHORT_NAME
from llmaas.regular_file import open_regular, replace_file

MOST_NODES = 64
_FILE = "nodes.json"
_MOST_BYTES = 1 << 20


@frozen
class PinnedNode:
    """``address``: HOST:PORT; "" if the node only begins connections."""

    name: str
    certificate: bytes
    address: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(SHORT_NAME, self.name):
            raise BadRequest(f"{self.name!r} is no name of a node", hint="Use letters, digits and . _ - for it.")
        if not 0 < len(self.certificate) <= MOST_CERTIFICATE:
            raise BadRequest(f"the certificate of {self.name} has {len(self.certificate)} bytes")
        if self.address:
            check_address(self.address)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)


class PinnedNodes:
    """The file in the node's folder of ``data_dir``."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir, self._path = data_dir, node_folder(data_dir) / _FILE

    def read(self) -> dict[str, PinnedNode]:
        """By name. Raises MachineError."""
        try:
            with open_regular(self._path) as file:
                found = json.loads(file.read(_MOST_BYTES))
            return {name: _pinned(name, entry) for name, entry in found.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise MachineError(f"{self._path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadRequest):
            hint = "Restore the file, or remove it and pair again ('llmaas node pair')."
            raise MachineError(f"{self._path} is damaged", hint=hint) from None

    def find(self, name: str) -> PinnedNode:
        """Raises UnknownNode, MachineError."""
        nodes = self.read()
        if name not in nodes:
            raise UnknownNode(f"this node is not paired with a node {name!r}")
        return nodes[name]

    def of_certificate(self, certificate: bytes | None) -> PinnedNode | None:
        """The node that shows this certificate. Raises MachineError."""
        return next((node for node in self.read().values() if node.certificate == certificate), None)

    def add(self, node: PinnedNode) -> None:
        """Pin a node, or another address of one. Raises BadRequest, MachineError."""
        nodes = self.read()
        before = nodes.get(node.name)
        if before is not None and before.certificate != node.certificate:
            raise BadRequest(
                f"{node.name} is the name of another node ({before.fingerprint})",
                hint=f"Choose another name, or forget that one first: 'llmaas node rm {node.name}'.",
            )
        for other in nodes.values():
            if other.name != node.name and other.certificate == node.certificate:
                raise BadRequest(f"this is the node {other.name}, which is paired already")
        if before is None and len(nodes) >= MOST_NODES:
            raise BadRequest(f"{len(nodes)} nodes are paired; more are not allowed")
        self._write({**nodes, node.name: node})

    def remove(self, name: str) -> PinnedNode:
        """Raises UnknownNode, MachineError."""
        node = self.find(name)
        self._write({other: each for other, each in self.read().items() if other != name})
        return node

    def _write(self, nodes: Mapping[str, PinnedNode]) -> None:
        entries = {
            name: {"certificate": base64.b64encode(node.certificate).decode(), "address": node.address}
            for name, node in nodes.items()
        }
        try:
            node_folder(self._data_dir, make=True)
            replace_file(self._path, (json.dumps(entries, indent=1) + "\n").encode(), 0o600)
        except OSError as error:
            raise MachineError(f"{self._path} cannot be written: {error.strerror}") from error


def _pinned(name: str, entry: Mapping[str, str]) -> PinnedNode:
    return PinnedNode(name, base64.b64decode(entry["certificate"], validate=True), entry["address"])
