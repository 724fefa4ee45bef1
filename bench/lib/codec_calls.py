"""The codec's C loops as a program: built for this machine or another, emulated, and its instructions counted.

Law: a program makes what ``llmaas.kvchunks.codec.kernels_native`` would make there; nothing of Python runs in it.

gcc and qemu-user are needed, on Debian of the packages ``COMPILERS`` and qemu-user-static.
"""

from __future__ import annotations

import enum
import math
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.lib.machine import ROOT
from llmaas.kvchunks.codec.kernels_channels import RopeRotation, channels_bytes
from llmaas.kvchunks.codec.kernels_numpy import F16, F32, U8, rotated_bytes

_CODEC = ROOT / "llmaas" / "kvchunks" / "codec"
_SOURCE = ROOT / "bench" / "micro" / "codec_calls.c"
_HEAD = struct.Struct("<16qd")
_RESULT = 4
_TRACED = b"Trace "
"""How qemu's log begins the line of each instruction that it is about to execute."""


@dataclass(frozen=True, slots=True)
class Target:
    """A machine that programs are built for. ``emulator`` and its arguments run them; ``bits`` of a vector register."""

    name: str
    compiler: str
    emulator: tuple[str, ...]
    isa: int
    bits: int

    def missing(self) -> str | None:
        """What has to be installed before this target can be used; None: nothing."""
        tools = (self.compiler, self.emulator[0])
        lost = [tool for tool in tools if shutil.which(tool) is None]
        return f"{' and '.join(lost)} must be installed (on Debian: {_PACKAGES})" if lost else None


_PACKAGES = "gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user-static"
_X86 = ("x86_64-linux-gnu-gcc", ("qemu-x86_64-static", "-cpu", "max"))
NEON = Target("neon", "aarch64-linux-gnu-gcc", ("qemu-aarch64-static", "-cpu", "cortex-a72"), 0, 128)
"""A CPU of the first version of 64-bit ARM, that of the Raspberry Pi 4: it has nothing but what all have."""
AVX2 = Target("avx2", *_X86, 1, 256)
PLAIN = Target("plain", *_X86, 0, 128)
TARGETS = (NEON, AVX2, PLAIN)


class Kind(enum.IntEnum):
    """The functions of ``_kvcodec.c``."""

    LARGEST = 0
    ENCODE_KEYS = 1
    DECODE_KEYS = 2
    ENCODE_VALUES = 3
    DECODE_VALUES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call. ``plane`` is a view of a buffer of its own, all of which goes to the program and comes back."""

    kind: Kind
    plane: F16
    section: U8
    bits: int = 8
    block: int = 1
    rope: RopeRotation | None = None
    weights: F32 | None = None

    def packed(self, isa: int, repeats: int) -> bytes:
        layers, tokens, dim = self.plane.shape
        rope, weights = self.rope, self.weights
        head = _HEAD.pack(
            *(self.kind, isa, self.bits, self.block, repeats, *self.plane.strides[:2], layers, tokens, dim),
            *((len(rope.table), rope.head, rope.pairs, rope.halves) if rope else (0, 0, 0, 0)),
            *(buffer_of(self.plane).nbytes, self.section.nbytes, 1 / math.sqrt(self.block)),
        )
        kind = rope.kind if rope else np.zeros(layers, np.uint8)
        filled = np.ones((layers, dim), np.float32) if weights is None else weights
        table = rope.table.tobytes() if rope else b""
        parts = (buffer_of(self.plane).tobytes(), self.section.tobytes(), table, kind.tobytes(), filled.tobytes())
        return head + b"".join(parts)


@dataclass(frozen=True, slots=True)
class Made:
    """What a call returned, and the bytes of its plane's buffer and of its section afterwards."""

    result: int
    plane: bytes
    section: bytes


@dataclass(frozen=True, slots=True)
class Program:
    target: Target
    path: Path

    def run(self, calls: Sequence[Call]) -> list[Made]:
        """Make these calls, one after the other, in one process."""
        data = b"".join(call.packed(self.target.isa, 1) for call in calls)
        ran = subprocess.run([*self.target.emulator, self.path], input=data, capture_output=True, check=True)
        return list(_made(ran.stdout, calls))

    def instructions(self, call: Call) -> int:
        """How many instructions one call takes: those of a run with two, less those of a run with one."""
        one, two = (self._instructions(call, repeats) for repeats in (1, 2))
        return two - one

    def _instructions(self, call: Call, repeats: int) -> int:
        log = self.path.with_suffix(".log")
        emulator = [*self.target.emulator, _one_by_one(self.target.emulator[0]), "-d", "nochain,exec", "-D", str(log)]
        data = call.packed(self.target.isa, repeats)
        subprocess.run([*emulator, self.path], input=data, stdout=subprocess.DEVNULL, check=True)
        with log.open("rb") as lines:
            count = sum(line.startswith(_TRACED) for line in lines)
        log.unlink()
        return count


def build(target: Target, folder: Path) -> Program:
    """Compile the loops as setup.py does, in one program without libraries. Raises CalledProcessError."""
    path = folder / f"codec-{target.name}"
    command = [target.compiler, *_flags(), "-static", f"-I{_CODEC}", "-o", str(path), str(_SOURCE)]
    subprocess.run(command, check=True, capture_output=True)
    return Program(target, path)


def section_for(kind: Kind, plane: F16, bits: int) -> U8:
    """An empty section for what is coded of ``plane``."""
    keys = kind in (Kind.ENCODE_KEYS, Kind.DECODE_KEYS)
    return np.zeros((channels_bytes if keys else rotated_bytes)(plane.shape, bits), np.uint8)


def plane(shape: tuple[int, int, int], gap: int = 12) -> F16:
    """A plane as llama.cpp's state has it: dense rows, ``gap`` bytes of something else between layers."""
    layers, tokens, dim = shape
    stride = 2 * tokens * dim + gap
    buffer = np.full(layers * stride, 0xA5, np.uint8)
    return np.ndarray(shape, np.float16, buffer, 0, (stride, 2 * dim, 2))


def buffer_of(plane: F16) -> U8:
    buffer = plane.base
    assert isinstance(buffer, np.ndarray) and buffer.dtype == np.uint8
    return buffer


def _flags() -> list[str]:
    """The options that pyproject.toml has for the codec's library."""
    text = (ROOT / "pyproject.toml").read_text("utf-8").partition('"llmaas.kvchunks.codec._kvcodec"')[2]
    found = re.search(r"^extra-compile-args = \[(.*)\]$", text, re.MULTILINE)
    assert found is not None
    return re.findall(r'"([^"]+)"', found.group(1))


def _made(output: bytes, calls: Iterable[Call]) -> Iterable[Made]:
    at = 0
    for call in calls:
        end = at + _RESULT + buffer_of(call.plane).nbytes
        result = int.from_bytes(output[at : at + _RESULT], "little", signed=True)
        yield Made(result, output[at + _RESULT : end], output[end : end + call.section.nbytes])
        at = end + call.section.nbytes
    assert at == len(output)


def _one_by_one(emulator: str) -> str:
    """qemu's option for blocks of one instruction each: it was renamed in version 8.1."""
    told = subprocess.run([emulator, "-help"], capture_output=True, text=True, check=False).stdout
    return "-one-insn-per-tb" if "one-insn-per-tb" in told else "-singlestep"
