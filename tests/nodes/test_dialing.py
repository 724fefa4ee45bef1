"""Whoever begins a connection to a node talks to the certificate that is pinned, and to no other that goes with it."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from llmaas.errors import BadRequest, NodeUnreachable, NotTrusted
from llmaas.nodes.cluster.fleet import WayToNodes
from llmaas.nodes.cluster.states import NodePlace
from llmaas.nodes.dialing import dialed
from llmaas.nodes.identity import own_identity
from llmaas.nodes.pinned import PinnedNode, PinnedNodes
from tests.support.loop import on_a_loop
from tests.support.node_house import SOON, free_port

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER


def certificate(
    name: str, key: Ed25519PrivateKey, issuer: str, signer: Ed25519PrivateKey, *, ca: bool
) -> x509.Certificate:
    names = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (issuer, name))
    return (
        x509.CertificateBuilder(*names, key.public_key(), 1 + ca)
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 1, 1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer, None)
    )


@asynccontextmanager
async def signed_by_the_pinned(root: Path) -> AsyncIterator[tuple[bytes, str, list[bytes]]]:
    """The certificate of one that may sign others; where a server is that shows one which it has signed; and what
    that server is told."""
    signer, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    pinned = certificate("desk", signer, "desk", signer, ca=True)
    leaf = certificate("leaf", key, "desk", signer, ca=False)
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (root / "leaf.pem").write_bytes(private + leaf.public_bytes(PEM) + pinned.public_bytes(PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(root / "leaf.pem")
    told: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    host, port = server.sockets[0].getsockname()
    try:
        yield pinned.public_bytes(DER), f"{host}:{port}", told
    finally:
        server.close()


@on_a_loop
async def test_what_the_pinned_one_has_signed_is_not_talked_to_also_at_a_door(tmp_path: Path) -> None:
    own = own_identity(tmp_path / "phone")
    async with signed_by_the_pinned(tmp_path) as (pinned, address, told):
        with pytest.raises(NotTrusted, match="not the node desk") as raised:
            await asyncio.wait_for(dialed(own, "desk", pinned, address), SOON)
        assert "pair with it again" in raised.value.hint
        PinnedNodes(tmp_path / "phone").add(PinnedNode("desk", pinned))
        way = WayToNodes(tmp_path / "phone")
        with pytest.raises(NotTrusted, match="not the node desk"):
            await asyncio.wait_for(way.open(NodePlace("desk", "/not/here.sock", door=address)), SOON)
        assert not any(told)


@on_a_loop
async def test_who_is_not_there_or_nowhere_is_said(tmp_path: Path) -> None:
    own = own_identity(tmp_path)
    with pytest.raises(NodeUnreachable, match="desk does not answer"):
        await asyncio.wait_for(dialed(own, "desk", own.certificate, f"127.0.0.1:{free_port()}"), SOON)
    PinnedNodes(tmp_path).add(PinnedNode("desk", own.certificate))
    with pytest.raises(BadRequest):
        await WayToNodes(tmp_path).open(NodePlace("desk", "/not/here.sock", door="nowhere"))
