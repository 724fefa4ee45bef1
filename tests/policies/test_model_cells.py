"""How many cells a model is loaded with."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmaas.policies.model_cells import cells_needed, cells_that_fit

BYTES = st.integers(0, 1 << 40)
CELLS = st.integers(0, 1 << 24)


@given(BYTES, BYTES, st.integers(0, 1 << 20), CELLS, CELLS)
def test_what_it_gets_fits_is_enough_and_no_more_than_it_may_have(
    room: int, bare: int, cell_bytes: int, one: int, other: int
) -> None:
    least, most = sorted((one, other))
    found = cells_that_fit(room, bare=bare, cell_bytes=cell_bytes, least=least, most=most)
    if found is None:
        assert bare + most * cell_bytes > room, "else it gets all"
        if cell_bytes:
            assert bare + -(-least // 256) * 256 * cell_bytes > room, "there is no room for the least"
    else:
        assert least <= found <= most and bare + found * cell_bytes <= room
        assert found == most or bare + (found + 256) * cell_bytes > room, "as many as there is room for"


def test_without_a_floor_of_its_own_it_is_all_or_none() -> None:
    assert cells_that_fit(10_000, bare=1000, cell_bytes=2, least=4096, most=4096) == 4096
    assert cells_that_fit(9000, bare=1000, cell_bytes=2, least=4096, most=4096) is None
    assert cells_that_fit(9000, bare=9001, cell_bytes=0, least=256, most=4096) is None


@given(CELLS, CELLS)
def test_the_longest_context_has_room_to_go_on(longest: int, most: int) -> None:
    found = cells_needed(longest, most)
    assert found == most or longest + 256 <= found <= longest + 512
