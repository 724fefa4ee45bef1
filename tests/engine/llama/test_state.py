"""The state blob of llama.cpp: layout, slabs, order, and what is refused. Pure numpy, blobs made by hand."""

from __future__ import annotations

import dataclasses
import gc
import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.engine.llama.buffers import Buffers
from llmaas.engine.llama.learn_layout import layer_order, learn_layout
from llmaas.engine.llama.state_blob import Section
from llmaas.engine.llama.state_layout import Blob, StateLayout, Unchunkable
from llmaas.kv_arrays import Bytes, KvSlab

MAGIC = 0xAF143CD8
F16, Q8_0 = 1, 8


def layer(row: int, values: list[bytes], kind: int = F16) -> bytes:
    assert all(len(value) == row for value in values)
    return struct.pack("<iQ", kind, row) + b"".join(values)


def state(
    positions: list[int],
    *,
    n_layer: int = 2,
    k_dim: int = 4,
    v_dim: int = 2,
    n_stream: int = 1,
    extra: bytes = b"",
    v_trans: int = 0,
    kind: int = F16,
    tail: bytes = b"",
) -> Bytes:
    """A state as llama.cpp writes it, rows in the order of ``positions``; each value shows its layer and position."""
    blob = struct.pack("<IiII", MAGIC, 7, n_stream, len(positions))
    for pos in positions:
        blob += struct.pack("<iI", pos, 1) + extra + struct.pack("<i", 7)
    blob += struct.pack("<II", v_trans, n_layer)
    for base, dim in ((0, k_dim), (1000, v_dim)):
        for il in range(n_layer):
            rows = [(base + 100 * il + 10 * pos + np.arange(dim)).astype("<f2").tobytes() for pos in positions]
            blob += layer(2 * dim, rows, kind)
    return np.frombuffer(bytearray(blob + tail), np.uint8)


def two(of_all: list[int], of_window: list[int], *, n_first: int = 2, n_second: int = 3, dim: int = 4) -> Bytes:
    """A state in two sections, of which only the first has the words before."""
    first, second = state(of_all, n_layer=n_first, k_dim=dim), state(of_window, n_layer=n_second, k_dim=4)
    return np.concatenate([first, second[8:]])


def test_the_layout_is_learnt_from_a_blob() -> None:
    assert learn_layout(state([0, 1, 2]), 3) == StateLayout(
        MAGIC, (Section(n_layer=2, k_row=8, v_row=4),), layers=(0, 1)
    )


@settings(deadline=None)
@given(n=st.integers(1, 40), n_layer=st.integers(1, 5), k_dim=st.integers(1, 9), v_dim=st.integers(1, 9))
def test_a_learnt_layout_reads_states_of_every_length(n: int, n_layer: int, k_dim: int, v_dim: int) -> None:
    layout = learn_layout(state([0, 1, 2], n_layer=n_layer, k_dim=k_dim, v_dim=v_dim), 3)
    positions = list(range(5, 5 + n))
    buffer = state(positions, n_layer=n_layer, k_dim=k_dim, v_dim=v_dim)
    assert buffer.size == layout.size(n)
    slab = layout.read(buffer, n, 5).slab()
    assert slab.k.shape == (n_layer, n, k_dim)
    assert slab.v.shape == (n_layer, n, v_dim)
    assert np.shares_memory(slab.k, buffer) and np.shares_memory(slab.v, buffer)
    il, pos = np.arange(n_layer)[:, None, None], np.arange(5, 5 + n)[None, :, None]
    assert np.array_equal(slab.k, (100 * il + 10 * pos + np.arange(k_dim)).astype(np.float16))
    assert np.array_equal(slab.v, (1000 + 100 * il + 10 * pos + np.arange(v_dim)).astype(np.float16))


@settings(deadline=None)
@given(order=st.permutations(range(10, 18)))
def test_rows_in_any_cell_order_are_read_in_position_order(order: list[int]) -> None:
    layout = learn_layout(state([0, 1, 2]), 3)
    sorted_blob = layout.read(state(list(order)), 8, 10)
    plain = layout.read(state(list(range(10, 18))), 8, 10)
    assert np.array_equal(sorted_blob.buffer, plain.buffer)


@pytest.mark.parametrize("positions", [[5, 6, 8], [5, 5, 6], [6, 7, 8]])
def test_other_positions_than_asked_for_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="exactly positions 5 to 7"):
        learn_layout(state([0, 1, 2]), 3).read(state(positions), 3, 5)


def test_a_state_of_another_size_or_shape_is_refused() -> None:
    layout = learn_layout(state([0, 1, 2]), 3)
    with pytest.raises(ValueError, match="bytes"):
        layout.read(state([0, 1]), 3, 0)
    with pytest.raises(ValueError, match="headers"):
        layout.read(state([0, 1, 2], v_trans=1), 3, 0)
    with pytest.raises(ValueError, match="headers"):
        layout.read(state([0, 1, 2], kind=Q8_0), 3, 0)


def test_a_blank_filled_with_rows_is_the_state_itself() -> None:
    layout = learn_layout(state([0, 1, 2]), 3)
    real = layout.read(state([3, 4, 5, 6]), 4, 3)
    blank = layout.blank(np.full(layout.size(4), 0xEE, np.uint8), 4)
    assert layout.intact(blank)
    blank.slab().k[:], blank.slab().v[:] = real.slab().k, real.slab().v
    blank.set_positions(3)
    forget_sequence(real)
    assert np.array_equal(blank.buffer, real.buffer)


def forget_sequence(blob: Blob) -> None:
    """Clear the sequence that llama.cpp wrote down, in front and in each cell; it ignores both."""
    blob.buffer[4:8] = 0
    for part in blob.parts:
        part.cells["seq"] = 0


@settings(deadline=None)
@given(first=st.permutations(range(7, 12)), second=st.permutations(range(7, 12)))
def test_a_state_in_two_sections_goes_into_a_slab_by_layers_and_back(first: list[int], second: list[int]) -> None:
    layout = dataclasses.replace(learn_layout(two([0, 1, 2], [0, 1, 2]), 3), layers=(1, 4, 0, 2, 3))
    assert layout.copied
    blob = layout.read(two(first, second), 5, 7)
    slab = layout.slab(np.empty(layout.size(9), np.uint8), 9)
    layout.unpack(blob, slab, 3)
    tokens, dims = 10 * np.arange(7, 12)[:, None], np.arange(4)
    for layer, base in ((1, 0), (4, 100), (0, 0), (2, 100), (3, 200)):
        assert np.array_equal(slab.k[layer, 3:8], base + tokens + dims)
        assert np.array_equal(slab.v[layer, 3:8], 1000 + base + tokens + dims[:2])

    part = KvSlab(slab.k[:, 3:8], slab.v[:, 3:8])
    back = layout.blank(np.full(layout.size(5), 0xEE, np.uint8), 5)
    layout.pack(part, back)
    back.set_positions(7)
    forget_sequence(blob)
    assert np.array_equal(back.buffer, blob.buffer)


def test_a_section_that_has_lost_tokens_is_noticed() -> None:
    layout = learn_layout(two([0, 1, 2], [0, 1, 2]), 3)
    with pytest.raises(ValueError, match="bytes"):
        layout.read(two([0, 1, 2, 3], [1, 2, 3]), 4, 0)
    with pytest.raises(ValueError, match="exactly positions"):
        layout.read(two([4, 5, 6], [5, 6, 7]), 3, 4)
    blob = layout.read(two([0, 1, 2], [0, 1, 2]), 3, 0)
    blob.buffer[8 + layout.sections[0].size(3)] ^= 0x40
    assert not layout.intact(blob)


def reach(layers: list[int], n_first: int) -> npt.NDArray[np.bool_]:
    """Which rows of a model with its rows in this order change if one of the first ``n_first`` is altered."""
    return np.array(layers)[None, :] > np.array(layers[:n_first])[:, None]


@settings(deadline=None)
@given(n_layer=st.integers(2, 40), data=st.data())
def test_the_layer_of_each_row_is_found_by_what_it_reaches(n_layer: int, data: st.DataObject) -> None:
    first = sorted(data.draw(st.sets(st.integers(0, n_layer - 1), min_size=1, max_size=n_layer - 1)))
    layers = first + sorted(set(range(n_layer)) - set(first))
    assert layer_order(reach(layers, len(first))) == tuple(layers)


@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 2), (0, 4)])
def test_an_order_that_does_not_show_is_refused(at: tuple[int, int]) -> None:
    changed = reach([1, 4, 0, 2, 3], 2)
    changed[at] ^= True
    with pytest.raises(Unchunkable, match="does not show"):
        layer_order(changed)


@pytest.mark.parametrize("at", [0, 8, 12, 16 + 4, 16 + 3 * 12, 16 + 3 * 12 + 4, 16 + 3 * 12 + 8, 16 + 3 * 12 + 12])
def test_an_overwritten_header_is_noticed(at: int) -> None:
    layout = learn_layout(state([0, 1, 2]), 3)
    blob = layout.read(state([0, 1, 2]), 3, 0)
    blob.buffer[at] ^= 0x40
    assert not layout.intact(blob)


@pytest.mark.parametrize(
    ("blob", "why"),
    [
        (state([0, 1]), "2 cells"),
        (state([0, 1, 2], n_stream=3), "3 streams"),
        (state([0, 1, 2], extra=bytes(8)), "8 more bytes"),
        (state([0, 2, 1]), "no table of cells"),
        (state([0, 1, 2], v_trans=1), "transposed"),
        (state([0, 1, 2], kind=Q8_0), "not f16"),
        (state([0, 1, 2], tail=bytes(4)), "further sections"),
        (two([0, 1, 2], [1, 2]), "further sections: .* 2 cells"),
        (two([0, 1, 2], [0, 1, 2], dim=6), "different sizes"),
        (np.concatenate([two([0, 1, 2], [0, 1, 2]), state([0, 1, 2])[8:]]), "more than two sections"),
        (state([0, 1, 2])[:-60], "ends early"),
        (state([0, 1, 2])[:-2], "ends early"),
        (state([0, 1, 2], n_layer=0), "ends early"),
        (np.zeros(0, np.uint8), "0 cells"),
    ],
)
def test_a_model_whose_state_is_not_rows_per_token_is_refused_with_the_reason(blob: Bytes, why: str) -> None:
    with pytest.raises(Unchunkable, match=why):
        learn_layout(blob, 3)


def test_layers_of_different_width_are_refused() -> None:
    blob = struct.pack("<IiII", MAGIC, 0, 1, 1) + struct.pack("<iIi", 0, 1, 0) + struct.pack("<II", 0, 2)
    blob += layer(4, [b"abcd"]) + layer(6, [b"abcdef"]) + 2 * layer(4, [b"abcd"])
    with pytest.raises(Unchunkable, match="different sizes"):
        learn_layout(np.frombuffer(blob, np.uint8), 1)


def test_a_buffer_comes_back_when_its_last_view_is_gone() -> None:
    buffers = Buffers(4096, spare_bytes=8192)
    first = buffers.take(4096)
    address, view = first.ctypes.data, first[100:200].view(np.float16)
    del first
    gc.collect()
    second = buffers.take(4096)
    assert second.ctypes.data != address, "the view still needs it"
    del view
    gc.collect()
    assert buffers.take(1000).ctypes.data == address


def test_no_more_than_the_bound_is_kept_and_larger_buffers_never() -> None:
    buffers = Buffers(1 << 20, spare_bytes=2 << 20)
    held = [buffers.take(1 << 20) for _ in range(5)]
    addresses = {buffer.ctypes.data for buffer in held}
    large = buffers.take(3 << 20)
    large[:] = 1
    assert large.size == 3 << 20
    for buffer in held:
        buffer[:] = 7
    del held, buffer
    gc.collect()
    again = [buffers.take(1 << 20) for _ in range(5)]
    old = [buffer for buffer in again if buffer[0] == 7]
    assert len(old) == 2
    assert {buffer.ctypes.data for buffer in old} <= addresses
