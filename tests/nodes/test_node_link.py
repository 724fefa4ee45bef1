"""Nodes talk over TLS, to whom they are paired with and nobody else."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from llmaas.errors import BadRequest, Busy, CallerError, MachineError, NodeUnreachable, NotTrusted
from llmaas.nodes.certificate import check_certificate
from llmaas.nodes.identity import NodeIdentity, own_identity
from llmaas.nodes.link import NodeClient, connect_node, end_tasks
from llmaas.nodes.listener import NodeListener
from llmaas.nodes.pinned import PinnedNode, PinnedNodes
from llmaas.nodes.tls import client_side
from tests.support.loop import on_a_loop
from tests.support.node_house import Echo, listening, pin

SOON = 20.0


@asynccontextmanager
async def desk_and_phone(root: Path) -> AsyncIterator[tuple[NodeListener, PinnedNode, NodeIdentity]]:
    """The desk listens; it, as the phone knows it; and who the phone is."""
    phone, desk = own_identity(root / "phone"), own_identity(root / "desk")
    pin(root / "desk", "phone", phone)
    async with listening(root / "desk") as listener:
        yield listener, pin(root / "phone", "desk", desk, listener.address), phone


async def connected(own: NodeIdentity, node: PinnedNode) -> NodeClient:
    return await asyncio.wait_for(connect_node(own, node), SOON)


@on_a_loop
async def test_paired_nodes_know_each_other(tmp_path: Path) -> None:
    async with desk_and_phone(tmp_path) as (_, desk, phone):
        client = await connected(phone, desk)
        assert client.facts == {"model": "m"}
        said = await client.ask("x", data=bytes(1 << 20), n=3)
        assert said == {"from": "phone", "asked": {"op": "x", "data": bytes(1 << 20), "n": 3}}
        await client.close()


@on_a_loop
async def test_who_is_not_paired_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    async with desk_and_phone(tmp_path) as (_, desk, _):
        with pytest.raises(NotTrusted, match="does not know") as raised:
            await connected(own_identity(tmp_path / "stranger"), desk)
        assert "node pair" in raised.value.hint


@on_a_loop
async def test_of_many_pinned_nodes_each_is_known(tmp_path: Path) -> None:
    many = {f"n{i}": own_identity(tmp_path / f"n{i}") for i in range(5)}
    for name, own in many.items():
        pin(tmp_path / "desk", name, own)
    async with listening(tmp_path / "desk") as listener:
        desk = PinnedNode("desk", own_identity(tmp_path / "desk").certificate, listener.address)
        for name, own in many.items():
            client = await connected(own, desk)
            assert (await client.ask("x"))["from"] == name
            await client.close()


def test_a_certificate_with_anothers_name_is_refused_when_it_is_to_be_pinned(tmp_path: Path) -> None:
    own = own_identity(tmp_path)
    key = serialization.load_pem_private_key(own_identity(tmp_path / "other").path.read_bytes(), None)
    name = x509.load_der_x509_certificate(own.certificate).subject
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)  # type: ignore[arg-type]
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 1, 1))
        .sign(key, None)  # type: ignore[arg-type]
    )
    check_certificate(own.certificate)
    with pytest.raises(BadRequest, match="no certificate of a node"):
        check_certificate(made.public_bytes(serialization.Encoding.DER))


@on_a_loop
async def test_another_in_the_nodes_place_is_not_talked_to(tmp_path: Path) -> None:
    async with desk_and_phone(tmp_path) as (listener, _, phone):
        other = own_identity(tmp_path / "other")
        with pytest.raises(NotTrusted, match="not the node desk"):
            await connected(phone, PinnedNode("desk", other.certificate, listener.address))


@on_a_loop
async def test_one_that_a_paired_node_has_signed_is_nobody(tmp_path: Path) -> None:
    async with desk_and_phone(tmp_path) as (_, desk, phone):
        signer = serialization.load_pem_private_key(phone.path.read_bytes(), None)
        issuer = x509.load_der_x509_certificate(phone.certificate)
        forged = own_identity(tmp_path / "forged")
        key = serialization.load_pem_private_key(forged.path.read_bytes(), None)
        one = x509.load_der_x509_certificate(forged.certificate)
        made = (
            x509.CertificateBuilder(issuer.subject, one.subject, one.public_key(), one.serial_number)
            .not_valid_before(datetime.datetime(1970, 1, 1))
            .not_valid_after(datetime.datetime(9999, 1, 1))
            .sign(signer, None)  # type: ignore[arg-type]
        )
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        forged.path.write_bytes(private + made.public_bytes(pem) + issuer.public_bytes(pem))
        with pytest.raises((NotTrusted, NodeUnreachable)):
            await connected(NodeIdentity(forged.path, made.public_bytes(serialization.Encoding.DER)), desk)


@on_a_loop
async def test_who_shows_nothing_is_refused_before_a_byte_is_read(tmp_path: Path) -> None:
    asked = []

    class Watched(Echo):
        def __init__(self, node: PinnedNode) -> None:
            super().__init__(node)
            asked.append(node)

    own_identity(tmp_path)
    async with listening(tmp_path, Watched) as listener:
        host, _, port = listener.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"\0\0\0\1\x80" * 100)
        assert (await asyncio.wait_for(reader.read(), SOON))[:1] in (b"", b"\x15"), "an alert of TLS at most"
        writer.close()
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(host, int(port), ssl=bare)
        with pytest.raises(OSError):
            writer.write(b"\0\0\0\1\x80" * 100)
            if not await asyncio.wait_for(reader.read(), SOON):
                raise OSError
        writer.close()
    assert asked == []


@on_a_loop
async def test_old_tls_is_not_spoken(tmp_path: Path) -> None:
    async with desk_and_phone(tmp_path) as (listener, desk, phone):
        context = client_side(phone, desk.certificate)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        host, _, port = listener.address.partition(":")
        with pytest.raises(OSError):
            await asyncio.open_connection(host, int(port), ssl=context, server_hostname="x")


@on_a_loop
async def test_a_node_that_is_forgotten_is_not_heard_any_more(tmp_path: Path) -> None:
    async with desk_and_phone(tmp_path) as (_, desk, phone):
        client = await connected(phone, desk)
        PinnedNodes(tmp_path / "desk").remove("phone")
        with pytest.raises(NodeUnreachable):
            await client.ask("x")
        with pytest.raises(NotTrusted):
            await connected(phone, desk)
        await client.close()


@pytest.mark.parametrize(
    "data",
    [struct.pack(">I", 1 << 31), b"\0\0\0\1\xc0", b"\0\0\0\2\xff\xff", struct.pack(">I", 5) + b"\xdd\xff\xff\xff\xff"],
    ids=["too large", "no map", "no msgpack", "a long list"],
)
@on_a_loop
async def test_nonsense_of_a_paired_node_ends_its_connection_and_no_other(tmp_path: Path, data: bytes) -> None:
    async with desk_and_phone(tmp_path) as (listener, desk, phone):
        other = await connected(phone, desk)
        host, _, port = listener.address.partition(":")
        context = client_side(phone, desk.certificate)
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="x")
        writer.write(data)
        assert await asyncio.wait_for(reader.read(), SOON) == b""
        writer.close()
        assert (await other.ask("x"))["from"] == "phone"
        await other.close()


@on_a_loop
async def test_a_node_has_a_few_connections_and_then_no_more(tmp_path: Path) -> None:
    async with desk_and_phone(tmp_path) as (_, desk, phone):
        clients = [await connected(phone, desk) for _ in range(4)]
        with pytest.raises(Busy, match="4 connections"):
            await connected(phone, desk)
        for client in clients:
            await client.close()


@on_a_loop
async def test_nobody_there_and_no_address(tmp_path: Path) -> None:
    async with desk_and_phone(tmp_path) as (_, desk, phone):
        pass
    with pytest.raises(NodeUnreachable, match="does not answer"):
        await connected(phone, desk)
    with pytest.raises(BadRequest, match="no address"):
        await connected(phone, PinnedNode("desk", desk.certificate))


class Failing(Echo):
    async def answer(self, request: object, send: object) -> dict[str, object]:
        match request:
            case {"op": "mine"}:
                raise BadRequest("so not", hint="but so")
            case _:
                raise RuntimeError("a fault")


@on_a_loop
async def test_what_is_wrong_is_said_and_a_fault_tells_nothing_of_the_inside(tmp_path: Path) -> None:
    phone = own_identity(tmp_path / "phone")
    pin(tmp_path / "desk", "phone", phone)
    async with listening(tmp_path / "desk", Failing) as listener:
        desk = pin(tmp_path / "phone", "desk", own_identity(tmp_path / "desk"), listener.address)
        client = await connected(phone, desk)
        with pytest.raises(CallerError, match="node desk: so not") as raised:
            await client.ask("mine")
        assert raised.value.hint == "but so"
        with pytest.raises(Exception, match="the request failed"):
            await client.ask("other")
        assert isinstance(client, NodeClient)
        await client.close()


def test_keys_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    own = own_identity(tmp_path)
    with pytest.raises(MachineError, match="cannot be used"):
        client_side(own, b"no certificate")


@on_a_loop
async def test_what_swallows_a_cancellation_ends_all_the_same() -> None:
    n_swallowed = 0

    async def stubborn() -> None:
        nonlocal n_swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                n_swallowed += 1
                if n_swallowed > 2:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(end_tasks([task]), SOON)
    assert task.cancelled() and n_swallowed == 3
