"""What the host tells the guest at its start."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.errors import ConfigError
from llmaas.vm.boot_message import MOST_KEY, BootMessage, check_key, encode_boot, read_boot

WORDS = st.lists(st.text(max_size=20), max_size=5).map(tuple)


@given(st.binary(min_size=16, max_size=64), st.integers(0, 2**32 - 1), WORDS, WORDS, st.none() | st.integers(0, 2**40))
def test_it_arrives_as_it_was_however_few_bytes_come_at_once(
    key: bytes, uid: int, daemon: tuple[str, ...], flags: tuple[str, ...], nbytes: int | None
) -> None:
    message = BootMessage(key, uid, daemon, flags, nbytes is None, nbytes, "a.gguf")
    port = io.BytesIO(encode_boot(message))
    assert read_boot(lambda n: port.read(min(n, 3))) == message and port.read() == b""


def test_the_key_is_in_no_text_that_could_be_logged() -> None:
    message = BootMessage(b"0123456789abcdef")
    assert "0123456789" not in repr(message) + str(message)


def test_what_ends_too_soon_or_is_too_long_is_an_error() -> None:
    whole = encode_boot(BootMessage(bytes(16)))
    for data in (b"", whole[:3], whole[:-1], b"\xff\xff\xff\xff" + whole[4:]):
        with pytest.raises(ValueError):
            read_boot(io.BytesIO(data).read)
    with pytest.raises(ConfigError, match="at most"):
        encode_boot(BootMessage(bytes(16), flags=("x" * (1 << 16),)))


@pytest.mark.parametrize("n", [0, 15, MOST_KEY + 1])
def test_what_is_too_short_or_too_long_is_no_key(n: int) -> None:
    with pytest.raises(ConfigError, match="bytes"):
        check_key(bytes(n), "stdin")
    assert check_key(bytes(16), "stdin") == bytes(16)
