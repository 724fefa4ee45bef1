"""When a side looks for the other's next bytes before it sleeps, and when it leaves its CPU to others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.slots.support import Pair, slot_pair
from tests.slots.test_c_client import SLOTS_C
from tests.support.drivers import WARNINGS, build, needs

SOURCE = Path(__file__).with_name("crowded.c")
SAID = """\
in vain: 0 1 3 7 15 31 63 63
off its CPU for 2 ms: 0 256 512 1024 2048 2048
after many that were not: 2048 256
off its CPU for 50 us: 2000 of 2000
"""
"""How many waits there are without a look before one with."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    built = tmp_path_factory.mktemp("c") / "crowded"
    build(needs("cc"), *WARNINGS, f"-I{SLOTS_C}", SOURCE, "-o", built)
    return subprocess.run([built], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_it_stays_for_who_answers_soon_and_not_for_others() -> None:
    with slot_pair() as pair:
        assert pair.service.came(soon=True)
        assert not pair.service.came(soon=False)
        assert pair.service.came(soon=True)


def not_staying(pair: Pair) -> int:
    """How often in a row it does not stay."""
    n = 0
    while not pair.service.came(soon=True):
        n += 1
    return n


def test_after_staying_in_vain_it_sleeps_the_next_1_3_7_up_to_63_times() -> None:
    with slot_pair() as pair:
        slept = []
        for _ in range(8):
            slept.append(not_staying(pair))
            pair.service.stayed_in_vain()
        assert slept == [0, 1, 3, 7, 15, 31, 63, 63]
        assert not_staying(pair) == 63
        assert [pair.service.came(soon=True) for _ in range(10)] == [True] * 10, "it was not in vain"
        pair.service.stayed_in_vain()
        pair.service.stayed_in_vain()
        assert not_staying(pair) == 31, "ten that were of use make up for two; it had slept already, the second time"


@pytest.mark.parametrize("line", SAID.splitlines())
def test_a_side_looks_where_that_is_of_use(line: str, said: list[str]) -> None:
    assert line in said
