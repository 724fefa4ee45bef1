"""Where the master key comes from, and what is no master key."""

from __future__ import annotations

import ctypes
import platform
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.errors import ConfigError
from llmaas.kvchunks.store.master_key import FILE, KEYRING, VARIABLE, find, key_file

HEX = "0123456789abcdef" * 4


def wraps_alike(one: object, other: object) -> bool:
    return one.key.unwrap("a", *other.key.make("a")[:2]) is not None  # type: ignore[attr-defined]


def test_the_file_is_made_once_beside_the_store_for_its_owner_alone(tmp_path: Path) -> None:
    data = tmp_path / "share" / "llmaas"
    assert find(data, FILE, {}, make=False) is None
    one, two = find(data, FILE, {}, make=True), find(data, FILE, {}, make=False)
    path = tmp_path / "share" / "llmaas.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and not data.exists()
    assert one is not None and two is not None
    assert wraps_alike(one, two) and one.origin == str(path)
    path.write_bytes(b"")  # a first start that was killed
    three = find(data, FILE, {}, make=True)
    assert three is not None and not wraps_alike(one, three)


def test_the_variable_comes_before_everything(tmp_path: Path) -> None:
    found = find(tmp_path / "data", KEYRING, {VARIABLE: f" {HEX}\n"}, make=True)
    again = find(tmp_path / "data", FILE, {VARIABLE: HEX.upper()}, make=True)
    assert found is not None and again is not None and wraps_alike(found, again)
    assert not key_file(tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["", "secret", HEX[:-1], HEX + "0", "x" * 64])
def test_what_is_no_key_is_refused_without_being_shown(text: str, tmp_path: Path) -> None:
    key_file(tmp_path / "data").write_text(text or "\n")
    key_file(tmp_path / "data").chmod(0o600)
    for environ in ({}, {VARIABLE: text}):
        with pytest.raises(ConfigError, match="64 hexadecimal digits") as caught:
            find(tmp_path / "data", FILE, environ, make=True)
        assert not text or text not in caught.value.message


def test_a_file_that_others_may_read_or_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path / "data")
    path.write_text(HEX)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read") as caught:
        find(tmp_path / "data", FILE, {}, make=True)
    assert caught.value.hint == f"chmod 600 {path}"
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot read or make"):
        find(tmp_path / "data", FILE, {}, make=True)


@pytest.fixture
def in_keyring() -> Iterator[None]:
    """HEX in this process's keyring, where the kernel lets us."""
    if platform.machine() != "x86_64":
        pytest.skip("the test knows add_key's number on x86_64 only")
    call = ctypes.CDLL(None).syscall
    key = call(ctypes.c_long(248), b"user", b"llmaas", HEX.encode(), ctypes.c_long(64), ctypes.c_long(-2))
    if key < 0:
        pytest.skip("no keyring here")
    yield
    call(ctypes.c_long(250), ctypes.c_long(9), ctypes.c_long(key), ctypes.c_long(-2))  # unlink


def test_the_kernels_keyring_is_asked(in_keyring: None, tmp_path: Path) -> None:
    found = find(tmp_path / "data", KEYRING, {}, make=True)
    same = find(tmp_path / "data", FILE, {VARIABLE: HEX}, make=True)
    assert found is not None and same is not None and wraps_alike(found, same)
    assert found.origin == "the kernel's keyring"


def test_a_keyring_without_the_key_says_how_to_put_it_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find(tmp_path / "data", KEYRING, {}, make=True)
    assert "keyring" in caught.value.message
