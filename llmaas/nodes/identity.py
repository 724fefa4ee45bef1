"""What a node shows to others: a private key and a certificate that it has signed itself.

Law: they are made once, together, in one file that only its owner can read. The certificate says nothing of who or
where the node is, and never expires: others know it by having pinned it, and small boards have no clock. Its name is
the hash of its key: OpenSSL looks pinned certificates up by name, and would take one for another of the same name.
"""

from __future__ import annotations

import datetime
import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from llmaas.errors import BadRequest, MachineError
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


def check_certificate(certificate: bytes) -> None:
    """Raises BadRequest for what is no certificate of a node."""
    hint = "'llmaas node show' of the other machine prints its card; it may have been cut off."
    try:
        found = x509.load_der_x509_certificate(certificate)
        key = found.public_key()
        is_right = isinstance(key, Ed25519PublicKey) and found.subject == found.issuer == _name(key)
    except (ValueError, UnsupportedAlgorithm):
        raise BadRequest("the card holds no certificate", hint=hint) from None
    if not is_right:
        raise BadRequest("the card holds no certificate of a node", hint=hint)


def _name(key: Ed25519PublicKey) -> x509.Name:
    digest = hashlib.sha256(key.public_bytes_raw()).hexdigest()
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"llmaas {digest[:32]}")])


def _made() -> bytes:
    key = Ed25519PrivateKey.generate()
    name = _name(key.public_key())
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, pkcs8, serialization.NoEncryption()) + certificate.public_bytes(pem)
