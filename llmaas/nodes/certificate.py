"""Certificates of nodes: made, and checked when one is pinned.

Law: pure. Apart from ``identity``, since every daemon imports that, and this takes 3 MB of memory.
"""

from __future__ import annotations

import datetime
import hashlib

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from llmaas.errors import BadRequest


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


def new_identity() -> bytes:
    """A new key and its certificate, as PEM."""
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
