"""Cards of nodes, which people carry from one machine to another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.errors import BadRequest
from llmaas.nodes.card import MOST_CERTIFICATE, NodeCard, check_address, fingerprint, read_card


@given(st.binary(min_size=1, max_size=MOST_CERTIFICATE), st.sampled_from(["", "10.0.0.5:1", "[::1]:65535", "a-b.c:80"]))
def test_a_card_is_read_as_it_was_written_whatever_a_terminal_did_to_its_lines(certificate: bytes, at: str) -> None:
    card = NodeCard(certificate, at)
    text = card.text()
    assert read_card(text) == card
    assert read_card("\n ".join(text[i : i + 20] for i in range(0, len(text), 20)) + "\n") == card


@given(st.text())
def test_anything_else_is_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(BadRequest) as raised:
        read_card(text)
    assert "llmaas node show" in raised.value.hint


def test_a_card_that_is_too_long_is_refused() -> None:
    with pytest.raises(BadRequest, match="at most"):
        read_card(NodeCard(bytes(MOST_CERTIFICATE + 1)).text())


@pytest.mark.parametrize("text", ["", "host", ":80", "host:0", "host:65536", "-h:80", "a b:80", "::1:80", "h:80:80"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="address"):
        check_address(text)


def test_fingerprints_differ_where_certificates_do() -> None:
    assert fingerprint(b"a") != fingerprint(b"b")
    assert len(fingerprint(b"a").replace("-", "")) * 5 == 125, "bits that somebody would have to match"
