"""LoRA adapters of the fake engine: a file stands for a number that changes all KV computed with it.

Law: the number depends on every byte of the weights. "" is the bare model, whose number is 0.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from llmaas.errors import AdapterMismatch, AdapterUnreadable

_KIND = "fake-lora"


def fake_adapter(weights: bytes, model: str = "fake-weights") -> bytes:
    """The content of an adapter file for the engine whose fingerprint is ``model``."""
    return f"{_KIND} {model} {len(weights)}\n".encode() + weights


class FakeAdapters:
    """The loaded adapters of an engine with this fingerprint."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._salts = {"": 0}

    def salt(self, name: str) -> int:
        """The adapter's number. Raises ValueError if none of that name is loaded."""
        if name not in self._salts:
            raise ValueError(f"there is no adapter {name!r}")
        return self._salts[name]

    def load(self, name: str, path: Path) -> None:
        """Read a file that ``fake_adapter`` made; see ``Engine.load_adapter``."""
        if name in self._salts:
            raise ValueError(f"there is an adapter {name!r} already")
        try:
            head, _, weights = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise AdapterUnreadable(f"cannot read the adapter {path}: {error.strerror}") from error
        kind, _, rest = head.decode("utf-8", "replace").partition(" ")
        model, _, size = rest.rpartition(" ")
        if kind != _KIND or str(len(weights)) != size:
            raise AdapterUnreadable(f"{path} is torn, or no adapter")
        if model != self._fingerprint:
            raise AdapterMismatch(f"{path} was made for {model}, not for {self._fingerprint}")
        self._salts[name] = int.from_bytes(hashlib.blake2b(weights, digest_size=8).digest(), "little")

    def unload(self, name: str) -> None:
        """Forget an adapter. Raises ValueError if none of that name is loaded, or for the bare model."""
        if not name:
            raise ValueError(f"there is no adapter {name!r}")
        self.salt(name)
        del self._salts[name]
