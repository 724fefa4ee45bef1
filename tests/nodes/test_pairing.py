"""Who this node is, and whom it knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmaas.errors import BadRequest, MachineError, UnknownNode
from llmaas.nodes.certificate import check_certificate
from llmaas.nodes.identity import node_folder, own_identity
from llmaas.nodes.pinned import MOST_NODES, PinnedNode, PinnedNodes


def test_a_node_has_one_key_which_is_private_and_another_node_another(tmp_path: Path) -> None:
    first = own_identity(tmp_path / "a")
    assert own_identity(tmp_path / "a") == first
    assert own_identity(tmp_path / "b").certificate != first.certificate
    assert first.path.stat().st_mode & 0o777 == 0o600
    assert node_folder(tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700, "conversations will be there"
    assert len(first.certificate) < 400, "its card is pasted by people"
    check_certificate(first.certificate)


@pytest.mark.parametrize("harm", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA", bytes(range(256))])
def test_a_damaged_key_is_said_and_not_replaced(tmp_path: Path, harm: bytes) -> None:
    path = own_identity(tmp_path).path
    path.write_bytes(harm)
    with pytest.raises(MachineError, match="damaged") as raised:
        own_identity(tmp_path)
    assert "pair with it again" in raised.value.hint
    assert path.read_bytes() == harm


def test_what_is_pinned_is_found_by_name_and_by_certificate_until_it_is_forgotten(tmp_path: Path) -> None:
    nodes = PinnedNodes(tmp_path)
    assert nodes.read() == {}
    desk, phone = PinnedNode("desk", b"d", "10.0.0.5:7411"), PinnedNode("phone", b"p")
    nodes.add(desk)
    nodes.add(phone)
    assert PinnedNodes(tmp_path).read() == {"desk": desk, "phone": phone}
    assert nodes.find("desk") == desk and nodes.of_certificate(b"p") == phone
    assert nodes.of_certificate(b"x") is None and nodes.of_certificate(None) is None
    assert nodes.remove("desk") == desk
    assert nodes.of_certificate(b"d") is None
    with pytest.raises(UnknownNode, match="desk"):
        nodes.find("desk")


def test_a_name_or_a_certificate_that_is_taken_is_refused_but_an_address_may_change(tmp_path: Path) -> None:
    nodes = PinnedNodes(tmp_path)
    nodes.add(PinnedNode("desk", b"d"))
    nodes.add(PinnedNode("desk", b"d", "desk:7411"))
    assert nodes.find("desk").address == "desk:7411"
    with pytest.raises(BadRequest, match="another node") as raised:
        nodes.add(PinnedNode("desk", b"e"))
    assert "llmaas node rm desk" in raised.value.hint
    with pytest.raises(BadRequest, match="the node desk"):
        nodes.add(PinnedNode("table", b"d"))


def test_there_is_a_bound(tmp_path: Path) -> None:
    nodes = PinnedNodes(tmp_path)
    for i in range(MOST_NODES):
        nodes.add(PinnedNode(f"n{i}", b"%d" % i))
    with pytest.raises(BadRequest, match="more are not allowed"):
        nodes.add(PinnedNode("one-more", b"x"))


@pytest.mark.parametrize(
    "harm", ["", "[]", "{", '{"a": 1}', '{"a": {"certificate": "!", "address": ""}}', '{"a b": {}}']
)
def test_a_damaged_file_is_an_error_and_never_an_empty_one(tmp_path: Path, harm: str) -> None:
    PinnedNodes(tmp_path).add(PinnedNode("desk", b"d"))
    (file,) = node_folder(tmp_path).glob("*.json")
    file.write_text(harm)
    with pytest.raises(MachineError, match="damaged"):
        PinnedNodes(tmp_path).read()
    with pytest.raises(MachineError, match="damaged"):
        PinnedNodes(tmp_path).add(PinnedNode("phone", b"p"))


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65])
def test_names_are_names(name: str) -> None:
    with pytest.raises(BadRequest, match="name"):
        PinnedNode(name, b"c")
