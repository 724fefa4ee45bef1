"""System calls by number are made only where the number is this process's, and no filter ends the process for it."""

from __future__ import annotations

import platform
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmaas.errors import ConfigError
from llmaas.host.raw_calls import call_number, on_android
from llmaas.kvchunks.store import master_key

NUMBERS = {"x86_64": 1, "aarch64": 2, "armv7l": 3}


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    def make(machine: str, pointer: int) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(struct, "calcsize", lambda text: pointer)

    return make


@pytest.mark.parametrize(
    ("machine", "pointer", "number"),
    [
        ("x86_64", 8, 1),
        ("aarch64", 8, 2),
        ("armv7l", 4, 3),
        ("aarch64", 4, None),  # 32-bit Raspberry Pi OS on a 64-bit kernel
        ("x86_64", 4, None),
        ("armv7l", 8, None),
        ("vax", 4, None),
    ],
)
def test_a_number_is_that_of_the_process(
    process: Callable[[str, int], None], machine: str, pointer: int, number: int | None
) -> None:
    process(machine, pointer)
    assert call_number(NUMBERS) == number


def test_on_android_no_call_is_made_that_could_end_the_process(
    process: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not on_android()
    monkeypatch.setattr(sys, "getandroidapilevel", lambda: 24, raising=False)
    process("aarch64", 8)
    assert on_android() and call_number(NUMBERS) is None
    with pytest.raises(ConfigError, match="cannot read the kernel's keyring") as caught:
        master_key.find(Path(), master_key.KEYRING, {}, make=False)
    assert "file" in caught.value.hint
