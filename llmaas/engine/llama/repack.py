"""Whether a model is loaded with a second copy of its weights, in an order that the CPU computes faster with.

Law: a copy is made only where one was asked for, or measured to pay. What is not known is answered "no copy", which
every CPU computes with.

llama.cpp copies ("repacks") weights of some types by default. For Qwen2.5-1.5B in Q4_K_M that is 600 MB beside a file
of 1.1 GB. On an x86 CPU answers then come 1.2 times as fast and prompts are read 1.5 times as slowly; an ARM CPU with
the i8mm extension may read prompts twice as fast. So it is measured, once for each CPU, model and build of llama.cpp
(``repack_measure``), beside a daemon that serves already: the answer counts from its next start on. Rejected: measuring
before the first start, which it would make several seconds longer; guessing by the CPU's name.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

from llmaas.engine.llama.lib import C, build, collect_lines, load_model
from llmaas.engine.llama.memory_use import can_copy
from llmaas.engine.llama.model_file import ModelFiles
from llmaas.frozen import frozen
from llmaas.memo_file import read_entries, with_newest, write_entries

_GAIN = 1.25
"""The copy is worth its memory if the geometric mean of its gains in prompts and in single tokens is as large. With
Qwen2.5-1.5B on x86 one gains 1.3 of what the other loses, and a busy machine moves each by 0.1."""
_MOST_KEPT = 64
"""Measurements that are kept, the newest; a machine has few models."""


class Pace(NamedTuple):
    """Tokens a second of one thread."""

    prefill: float
    decode: float


class BothPaces(NamedTuple):
    """What was measured of a model on this machine."""

    copied: Pace
    plain: Pace

    @property
    def pays(self) -> bool:
        """Whether the copy is worth its memory."""
        return self.copied.prefill * self.copied.decode >= _GAIN**2 * self.plain.prefill * self.plain.decode

    def __str__(self) -> str:
        prefill, decode = (a / b for a, b in zip(self.copied, self.plain, strict=True))
        return f"with it prefill is {prefill:.2f} times as fast, decode {decode:.2f} times"


def measured(copied: Any, plain: Any) -> BothPaces:
    """From what JSON holds: two speeds each. Raises TypeError, ValueError."""
    found = BothPaces(Pace(*map(float, copied)), Pace(*map(float, plain)))
    if not all(0 < speed < math.inf for pace in found for speed in pace):
        raise ValueError("a speed is above 0")
    return found


@frozen
class RepackChoice:
    """``copied``: whether the copy is made. ``reason``: why, for a person. ``open``: it is not known yet if it pays."""

    copied: bool
    reason: str
    open: bool = False


class Memo:
    """The file that keeps what was measured. One that cannot be read or written is an empty one, and a warning."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, key: str) -> BothPaces | None:
        try:
            entry = read_entries(self._path)[key]
            return measured(entry["copied"], entry["plain"])
        except (KeyError, TypeError, ValueError):
            return None

    def keep(self, key: str, model: str, found: BothPaces) -> None:
        entry = {"model": model, "copied": list(found.copied), "plain": list(found.plain)}
        kept = with_newest(read_entries(self._path), key, entry, _MOST_KEPT)
        write_entries(self._path, kept, "what was measured of copies of weights, which is measured again,")


def choose(path: Path, wanted: str, memo: Memo) -> RepackChoice:
    """Whether the model at ``path`` gets the copy. ``wanted``: on, off, or auto. Raises ModelUnreadable.

    Auto takes 20 ms, and where nothing was measured yet as long as llama.cpp takes to read the vocabulary: 0.14 s for
    49,152 tokens, 0.7 s for 262,144.
    """
    if wanted != "auto":
        return RepackChoice(wanted == "on", f"repack = {wanted}")
    found = memo.find(key_of(path))
    if found is not None:
        return RepackChoice(found.pays, f"measured on this CPU: {found}")
    if not copyable(path):
        return RepackChoice(False, "this CPU has no faster order for weights of these types")
    return RepackChoice(False, "not known yet if it pays; the daemon measures that, for its next start", open=True)


def key_of(path: Path) -> str:
    """Names all that the answer depends on: the weights, the CPU and what it can, and llama.cpp. Raises
    ModelUnreadable.
    """
    files = ModelFiles(path)
    try:
        facts = (files.fingerprint, cpu_text(), build())
    finally:
        files.close()
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def copyable(path: Path) -> bool:
    """Whether llama.cpp would copy any of the model's weights on this CPU. Loads none of them."""
    with collect_lines() as lines:
        model = load_model(path, weights=False)
    C.llama_model_free(model)
    return can_copy(lines)


def cpu_text(file: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name and instruction sets, as far as the system tells."""
    try:
        lines = file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return "unknown"
    wanted = ("model name", "CPU implementer", "CPU part", "Features", "flags", "isa")
    found = (line.partition(":") for line in lines if line.startswith(wanted))
    return " ".join(sorted({f"{name.strip()}={value.strip()}" for name, _, value in found}))
