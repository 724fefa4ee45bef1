"""Archives: what is written comes back, and of a damaged one all that is whole, with a word on the rest."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence

import msgpack  # type: ignore[import-untyped,unused-ignore]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.errors import BadRequest
from llmaas.nodes.archive import blocks
from llmaas.nodes.archive.blocks import HEADER_BYTES, Block, BlockWriter, Gap, read_blocks
from llmaas.nodes.archive.reader import ArchiveReader, Item, Lost, ReadSpans
from llmaas.nodes.archive.records import ArchiveHeader, ChunkRecord, ContextEnd, ContextHead, SpanRun, packed, unpacked
from llmaas.nodes.archive.writer import ArchiveWriter
from llmaas.records import ContextSpan

SPANS = tuple(
    ContextSpan(bytes(range(i, i + 40)) * 20, role, text, role == "assistant")
    for i, (role, text) in enumerate([("user", "What is it? " * 20), (None, None), ("assistant", "That. " * 30)])
)
CHUNKS = [random.Random(i).randbytes(3000) for i in range(4)]


def head(name: str = "notes") -> ContextHead:
    return ContextHead(0, name, "smol", "bpe:1", 0, ttl=60.0, root=b"r" * 16, kv=b"k" * 16)


def archive(names: Sequence[str] = ("notes",), chunks: Sequence[bytes] = CHUNKS) -> bytes:
    sink = io.BytesIO()
    writer = ArchiveWriter(sink, 1.5)
    for name in names:
        writer.begin(head(name), SPANS)
        for i, data in enumerate(chunks):
            writer.chunk(i, data, b"proof")
    writer.close()
    assert writer.nbytes == len(sink.getvalue())
    return sink.getvalue()


def read(data: bytes) -> tuple[list[Item], bool]:
    reader = ArchiveReader(io.BytesIO(data))
    return list(reader), reader.complete


def starts(data: bytes) -> list[int]:
    """Where the blocks begin."""
    found, at = list[int](), 0
    while at < len(data):
        found.append(at)
        at += HEADER_BYTES + int.from_bytes(data[at + 8 : at + 12], "little")
    return found


def test_what_is_written_comes_back() -> None:
    items, complete = read(archive(["notes", "more"]))
    assert complete and not [item for item in items if isinstance(item, Lost)]
    contexts = [item for item in items if isinstance(item, ReadSpans)]
    assert [(c.head.number, c.head.name, c.head.ttl, c.n_lost) for c in contexts] == [
        (0, "notes", 60.0, 0),
        (1, "more", 60.0, 0),
    ]
    assert all(c.spans == SPANS for c in contexts)
    chunks = [item for item in items if isinstance(item, ChunkRecord)]
    assert [(c.context, c.index, c.data, c.proof) for c in chunks] == [
        (n, i, data, b"proof") for n in range(2) for i, data in enumerate(CHUNKS)
    ]
    assert [item for item in items if isinstance(item, ContextEnd)] == [ContextEnd(0, 3, 4), ContextEnd(1, 3, 4)]


def test_long_conversations_take_several_blocks() -> None:
    spans = [ContextSpan(bytes(4), "user", "x" * 300_000) for _ in range(9)]
    sink = io.BytesIO()
    writer = ArchiveWriter(sink, 0.0)
    writer.begin(head(), spans)
    writer.close()
    runs = [b for b in read_blocks(io.BytesIO(sink.getvalue())) if isinstance(b, Block) and b.kind == 3]
    assert len(runs) > 3
    items, complete = read(sink.getvalue())
    assert complete and isinstance(items[0], ReadSpans) and items[0].spans == tuple(spans)


def test_cut_off_at_every_block_and_within_it_the_rest_is_there() -> None:
    whole = archive()
    places = starts(whole)
    assert len(places) == 9, "header, context, spans, four chunks, end, trailer"
    for n, place in enumerate(places):
        for cut in (place, place + 7, place + HEADER_BYTES, place + HEADER_BYTES + 3):
            if cut >= len(whole):
                continue
            items, complete = read(whole[:cut])
            assert not complete and isinstance(items[-1], Lost), cut
            assert sum(isinstance(item, ChunkRecord) for item in items) == max(0, min(4, n - 3))
            kept = [item for item in items if isinstance(item, ReadSpans)]
            assert [len(k.spans) for k in kept] == [] if n < 2 else [3 if n > 2 else 0]


def test_a_byte_that_is_wrong_costs_its_own_block_only() -> None:
    whole = archive()
    random_place, places = random.Random(3), starts(whole)
    for n, place in enumerate(places):
        end = places[n + 1] if n + 1 < len(places) else len(whole)
        for at in [*range(place, place + HEADER_BYTES), *random_place.sample(range(place + HEADER_BYTES, end), 8)]:
            hurt = bytearray(whole)
            hurt[at] ^= 1 << random_place.randrange(8)
            items, _ = read(bytes(hurt))
            assert any(isinstance(item, Lost) for item in items), f"byte {at} of block {n}"
            found = [item.data for item in items if isinstance(item, ChunkRecord)]
            if n != 1:  # without its head, nobody knows whose chunks they are
                assert found == [data for i, data in enumerate(CHUNKS) if i + 3 != n]
            if n not in (1, 2):
                assert next(item for item in items if isinstance(item, ReadSpans)).spans == SPANS
            if 3 <= n < 7 and at >= place + HEADER_BYTES:
                assert [item.only_kv for item in items if isinstance(item, Lost)] == [True]


def test_blocks_that_are_missing_or_of_a_later_version_are_said() -> None:
    whole = archive()
    places = starts(whole)
    items, complete = read(whole[: places[4]] + whole[places[6] :])
    assert complete and [item.what for item in items if isinstance(item, Lost)] == ["2 blocks before block 6"]
    sink = io.BytesIO()
    BlockWriter(sink).write(77, b"new")
    items, _ = read(sink.getvalue())
    assert isinstance(items[0], Lost) and "later version" in items[0].what


def test_messages_behind_a_hole_are_not_put_in_front_of_it() -> None:
    spans = [ContextSpan(bytes([i, 0, 0, 0]), "user", "x" * 700_000) for i in range(4)]
    sink = io.BytesIO()
    writer = ArchiveWriter(sink, 0.0)
    writer.begin(head(), spans)
    writer.close()
    hurt = bytearray(sink.getvalue())
    hurt[starts(bytes(hurt))[4] + HEADER_BYTES + 5] ^= 4
    items, complete = read(bytes(hurt))
    context = next(item for item in items if isinstance(item, ReadSpans))
    assert complete and context.spans == tuple(spans[:2]) and context.n_lost == 2


def test_another_format_is_refused() -> None:
    sink = io.BytesIO()
    BlockWriter(sink).write(1, packed(ArchiveHeader(2, "llmaas 9", 0.0)))
    with pytest.raises(BadRequest, match="format 2"):
        read(sink.getvalue())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_raise_anything(data: bytes) -> None:
    assert all(isinstance(found, Block | Gap) for found in read_blocks(io.BytesIO(data)))
    assert read(data)[1] is False
    for kind in range(8):
        unpacked(kind, data)


@pytest.mark.parametrize("wrong", [{"number": -1}, {"ttl": "x"}, {"root": "text"}, {"name": None}, {"n_spans": True}])
def test_fields_of_other_types_are_no_record(wrong: dict[str, object]) -> None:
    fields = msgpack.unpackb(packed(head()))
    assert unpacked(2, msgpack.packb(fields)) == head()
    assert unpacked(2, msgpack.packb({**fields, "later": 1})) == head(), "what a later version adds is ignored"
    assert unpacked(2, msgpack.packb({**fields, **wrong})) is None
    run = msgpack.unpackb(packed(SpanRun(0, 0, SPANS)))
    assert unpacked(3, msgpack.packb(run)) == SpanRun(0, 0, SPANS)
    for span in ([b"123", None, None, False], [b"", "user", None, False], [b"", None, None, 1], [b""]):
        assert unpacked(3, msgpack.packb({**run, "spans": [span]})) is None


def test_without_zstandard_zlib_does_and_zstd_is_refused_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    by_zstd = archive()
    monkeypatch.setattr(blocks, "zstandard", None)
    by_zlib = archive()
    with pytest.raises(BadRequest, match="zstd"):
        read(by_zstd)
    items, complete = read(by_zlib)
    monkeypatch.undo()
    assert complete and items == read(by_zlib)[0] == read(by_zstd)[0]


def test_a_block_that_says_it_is_larger_than_it_is_takes_no_memory() -> None:
    sink = io.BytesIO()
    BlockWriter(sink).write(2, bytes(1 << 20))  # compresses to almost nothing
    data = bytearray(sink.getvalue())
    assert len(data) < 2000
    found = next(iter(read_blocks(io.BytesIO(bytes(data)))))
    assert isinstance(found, Block) and found.body == bytes(1 << 20)
    with pytest.raises(ValueError, match="at most"):
        BlockWriter(sink).write(2, bytes((64 << 20) + 1))
