"""The header of a slot, and docs/slots.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmaas.errors import VersionMismatch
from llmaas.slots import layout
from llmaas.slots.layout import HEADER, SlotHeader, SlotLayout, header, read_header

DOC = (Path(__file__).parents[2] / "docs" / "slots.md").read_text(encoding="utf-8")


def test_the_rings_follow_the_header_and_fill_the_slot() -> None:
    slot = SlotLayout(1 << 19)
    assert (slot.requests, slot.replies, slot.nbytes) == (HEADER, HEADER + (1 << 19), HEADER + (1 << 20))


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 5000, 1 << 27, -4096])
def test_rings_of_other_sizes_are_refused(nbytes: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        SlotLayout(nbytes)


@pytest.mark.parametrize(("nbytes", "ring"), [(1 << 20, 1 << 18), (HEADER + (1 << 20), 1 << 19), (12288, 4096)])
def test_the_largest_slot_that_fits_into_memory(nbytes: int, ring: int) -> None:
    slot = SlotLayout.within(nbytes)
    assert slot.ring_bytes == ring and slot.nbytes <= nbytes
    assert read_header(header(slot, 1, 1000, far=True), nbytes) == SlotHeader(slot, 1, 1000, far=True)
    with pytest.raises(ValueError, match="power of two"):
        SlotLayout.within(12287)


def test_a_header_that_is_none_or_of_another_version_is_refused() -> None:
    slot = SlotLayout(4096)
    good = header(slot, 2**32 + 3, 1000)
    assert read_header(good, slot.nbytes).generation == 3
    bad_ring = good[:12] + (5000).to_bytes(4, "little") + good[16:]
    for data in (good[:10], b"\0" * 24, good[:8] + b"\2" + good[9:], bad_ring, good[:8] + good[11:7:-1] + good[12:]):
        with pytest.raises(VersionMismatch):
            read_header(data, slot.nbytes)
    with pytest.raises(VersionMismatch, match="has 5000"):
        read_header(good, 5000)


def test_the_document_has_every_offset_as_the_code_has_it() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (\d+) \|", DOC, re.MULTILINE))
    assert {name: int(offset) for name, offset in rows.items()} == {
        "magic": 0,
        "version": 8,
        "ring_bytes": 12,
        "generation": 16,
        "owner": 20,
        "waking": 24,
        "state": layout.STATE,
        "requests.written": layout.REQUESTS_WRITTEN,
        "requests.taken": layout.REQUESTS_TAKEN,
        "replies.written": layout.REPLIES_WRITTEN,
        "replies.taken": layout.REPLIES_TAKEN,
        "client.sleeps": layout.CLIENT_SLEEPS,
        "service.sleeps": layout.SERVICE_SLEEPS,
    }
    assert f"version {layout.VERSION}" in DOC and str(HEADER) in DOC
