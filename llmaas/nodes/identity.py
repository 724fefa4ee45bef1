"""What a node shows to others: a private key and a certificate that it has signed itself.

Law: they are made once, together, in one file that only its owner can read. The certificate says nothing of who or
where the node is, and never expires: others know it by having pinned it, and small boards have no clock.
"""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from llmaas.errors import MachineError
from llmaas.regular_file import open_regular, replace_file

FOLDER = "node"
"""In the data folder; the file of pinned nodes is there, too."""
_FILE = "identity.pem"
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """``path``: a PEM file with the key and the certificate, as ``ssl`` reads it."""

    path: Path
    certificate: bytes


def node_folder(data_dir: Path) -> Path:
    return data_dir / FOLDER


def own_identity(data_dir: Path) -> NodeIdentity:
    """This node's; it is made if there is none. Raises MachineError."""
    folder = node_folder(data_dir)
    path = folder / _FILE
    try:
        if not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, _made(), 0o600)
        with open_regular(path) as file:
            text = file.read(_MOST_BYTES).decode("ascii")
        _, begin, end = text.partition("-----BEGIN CERTIFICATE-----")
        return NodeIdentity(path, ssl.PEM_cert_to_DER_cert(begin + end))
    except OSError as error:
        raise MachineError(f"the node's key {path} cannot be used: {error.strerror}") from error
    except ValueError:
        hint = "Restore the file, or remove it: then the node has a new key, and others must pair with it again."
        raise MachineError(f"the node's key {path} is damaged", hint=hint) from None


def _made() -> bytes:
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "llmaas node")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, pkcs8, serialization.NoEncryption()) + certificate.public_bytes(pem)
