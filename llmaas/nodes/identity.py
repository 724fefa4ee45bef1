"""What a node shows to others: a private key and a certificate that it has signed itself.

Law: they are made once, together, in one file that only its owner can read. The certificate says nothing of who or
where the node is, and never expires: others know it by having pinned it, and small boards have no clock. Its name is
the hash of its key: OpenSSL looks pinned certificates up by name, and would take one for another of the same name.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from llmaas.errors import MachineError
from llmaas.frozen import frozen
from llmaas.regular_file import open_regular, replace_file

FOLDER = "node"
"""In the data folder; the file of pinned nodes is there, too."""
_FILE = "identity.pem"
_MOST_BYTES = 1 << 16


@frozen
class NodeIdentity:
    """``path``: a PEM file with the key and the certificate, as ``ssl`` reads it."""

    path: Path
    certificate: bytes


def node_folder(data_dir: Path, *, make: bool = False) -> Path:
    """Raises OSError if it is to be made and cannot be."""
    folder = data_dir / FOLDER
    if make:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is in it later is private, too
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def own_identity(data_dir: Path) -> NodeIdentity:
    """This node's; it is made if there is none. Raises MachineError."""
    path = node_folder(data_dir) / _FILE
    try:
        if not path.exists():
            node_folder(data_dir, make=True)
            from llmaas.nodes.certificate import new_identity  # 3 MB, and needed once

            replace_file(path, new_identity(), 0o600)
        with open_regular(path) as file:
            text = file.read(_MOST_BYTES).decode("ascii")
        _, begin, end = text.partition("-----BEGIN CERTIFICATE-----")
        return NodeIdentity(path, ssl.PEM_cert_to_DER_cert(begin + end))
    except OSError as error:
        raise MachineError(f"the node's key {path} cannot be used: {error.strerror}") from error
    except ValueError:
        hint = "Restore the file, or remove it: then the node has a new key, and others must pair with it again."
        raise MachineError(f"the node's key {path} is damaged", hint=hint) from None
