"""Encrypted archives: who opens them, who does not, and what a flipped or missing byte costs."""

from __future__ import annotations

import io
import random

import pytest

from llmaas.errors import BadRequest
from llmaas.nodes.archive import locks
from llmaas.nodes.archive.envelope import opened, sealed
from llmaas.nodes.archive.locks import Lock, Opener, Passphrase, Recipient, SecretKey
from llmaas.nodes.archive.sealing import SEGMENT, TAG, SealingSink, UnsealingSource

PLAIN = random.Random(0).randbytes(5 * SEGMENT + 77)
SECRET = SecretKey(bytes(range(32)))


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Passphrase.wrap, "__defaults__", (4,))
    monkeypatch.setattr(locks, "MOST_LOG_N", 8)  # a flipped bit asks for 2^20 rounds, which take 1 GiB


def written(lock: Lock | None, plain: bytes = PLAIN) -> bytes:
    sink = io.BytesIO()
    with sealed(sink, lock) as clear:
        for i in range(0, len(plain), 50_000):
            clear.write(plain[i : i + 50_000])
    return sink.getvalue()


def read(data: bytes, opener: Opener | None) -> bytes:
    source = opened(io.BytesIO(data), opener)
    return b"".join(iter(lambda: source.read(70_001), b""))


@pytest.mark.parametrize(
    ("lock", "opener"),
    [(None, None), (Passphrase("open sesame"), Passphrase("open sesame")), (SECRET.recipient, SECRET)],
    ids=["clear", "passphrase", "recipient"],
)
@pytest.mark.parametrize("n", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, len(PLAIN)])
def test_who_has_the_key_reads_it(lock: Lock | None, opener: Opener | None, n: int) -> None:
    data = written(lock, PLAIN[:n])
    assert read(data, opener) == PLAIN[:n]
    assert n < 200 or (PLAIN[:200] in data) == (lock is None)


def test_two_archives_of_the_same_have_nothing_in_common() -> None:
    one, two = written(Passphrase("x")), written(Passphrase("x"))
    assert one[300:] != two[300:] and len(one) == len(two)


@pytest.mark.parametrize(
    ("opener", "says"),
    [
        (Passphrase("open sesam"), "does not open"),
        (SECRET, "for a passphrase"),
        (None, "is encrypted"),
    ],
)
def test_another_passphrase_opens_nothing(opener: Opener | None, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        read(written(Passphrase("open sesame")), opener)


def test_another_key_opens_nothing() -> None:
    data = written(SECRET.recipient)
    with pytest.raises(BadRequest, match="another key"):
        read(data, SecretKey.new())
    with pytest.raises(BadRequest, match="for a recipient"):
        read(data, Passphrase("x"))


def test_what_is_no_archive_is_refused() -> None:
    for data in (b"", b"llmaas archive 2\n", b"PK\x03\x04" * 20):
        with pytest.raises(BadRequest, match="no archive"):
            read(data, None)


def test_every_bit_of_the_head_counts() -> None:
    data = written(Passphrase("x"), b"text")
    n_head = len(data) - 4 - TAG
    for at in range(len(b"llmaas sealed archive 1\n"), n_head):
        for bit in range(8):
            hurt = bytearray(data)
            hurt[at] ^= 1 << bit
            try:
                assert read(bytes(hurt), Passphrase("x")) != b"text"
            except BadRequest:
                continue


def test_work_without_end_is_refused() -> None:
    wrapping = Passphrase("x").wrap(bytes(32))
    for log_n in (0, 21, 62, 1 << 40):
        with pytest.raises(BadRequest, match="scrypt"):
            Passphrase("x").unwrap(locks.Wrapping("passphrase", wrapping.wrapped, wrapping.salt, log_n))


def segments() -> tuple[bytes, int]:
    sink = io.BytesIO()
    sealing = SealingSink(sink, bytes(32))
    sealing.write(PLAIN)
    sealing.close()
    return sink.getvalue(), SEGMENT + TAG


def unsealed(data: bytes) -> tuple[bytes, UnsealingSource]:
    source = UnsealingSource(io.BytesIO(data), bytes(32))
    return source.read(1 << 30), source


def test_a_flipped_byte_costs_its_segment_and_no_other() -> None:
    data, size = segments()
    for n in range(6):
        hurt = bytearray(data)
        hurt[n * size + 5] ^= 1
        clear, source = unsealed(bytes(hurt))
        assert source.n_damaged == 1 and not source.cut and len(clear) == len(PLAIN)
        for i in range(6):
            part = slice(i * SEGMENT, (i + 1) * SEGMENT)
            assert clear[part] == (bytes(len(PLAIN[part])) if i == n else PLAIN[part])


def test_segments_cannot_be_cut_off_exchanged_or_left_out() -> None:
    data, size = segments()
    for n in range(1, 6):
        clear, source = unsealed(data[: n * size])
        assert source.cut and not source.n_damaged and clear == PLAIN[: n * SEGMENT]
        assert unsealed(data[: n * size + 40])[1].n_damaged == 1
    exchanged = data[size : 2 * size] + data[:size] + data[2 * size :]
    assert unsealed(exchanged)[1].n_damaged == 2
    assert unsealed(data[size:])[1].n_damaged == 5
    assert unsealed(data + data[:size])[1].n_damaged == 2, "nothing comes behind the last"


def test_keys_are_written_with_a_checksum() -> None:
    recipient, secret = str(SECRET.recipient), SECRET.written()
    assert Recipient.parsed(f" {recipient}\n") == SECRET.recipient and SecretKey.parsed(secret) == SECRET
    assert secret not in repr(SECRET) and "sesame" not in repr(Passphrase("sesame"))
    for text in ("", recipient[:-1], recipient.replace("A", "B", 1), secret, recipient[::-1], "llmaas-pub-"):
        if text != recipient:
            with pytest.raises(BadRequest, match="public key"):
                Recipient.parsed(text)
    with pytest.raises(BadRequest, match="at least one"):
        Passphrase("")
