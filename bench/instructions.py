"""How many instructions the codec takes for each value: NEON against AVX2 and plain C, all by emulation.

Emulation tells no speed, but it shows a loop that the compiler did not vectorise, on a machine without that CPU.
A vector of NEON has half of the bits of AVX2's, so twice as many instructions are due: ``over_avx2`` is the quotient of
instructions for each value and 128 bits of a vector.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.codec_calls import AVX2, NEON, TARGETS, Call, Kind, Program, build, plane, section_for
from bench.lib.stats import sig
from llmaas.kv_arrays import Rope
from llmaas.kvchunks.codec.kernels import NUMPY
from llmaas.kvchunks.codec.kernels_numpy import BITS
from llmaas.kvchunks.codec.planes import rope_rotation, rotation_size

MOST_OVER_AVX2 = 1.3
TOKENS = 64
"""A full chunk. Layers do not differ, so there is one."""


@dataclass(frozen=True, slots=True)
class Model:
    """What decides which loops run: channels of K and V, those of a head, how RoPE pairs them."""

    name: str
    dim: int
    head: int
    halves: bool


MODELS = (
    Model("SmolLM2-135M", 192, 64, False),
    Model("Qwen2.5-0.5B", 128, 64, True),
    Model("Gemma-270M", 256, 256, True),
)


def call_of(kind: Kind, model: Model, bits: int, seed: int) -> Call:
    """A call that codes or decodes normal values, with a few channels that are larger, as keys have them."""
    rng = np.random.default_rng(seed)
    x = plane((1, TOKENS, model.dim))
    x[...] = rng.standard_normal(x.shape) + 4 * rng.standard_normal(model.dim)
    angles = (1e4 ** -(np.arange(model.head // 2) / (model.head // 2))).astype(np.float32)
    rope = rope_rotation(Rope(angles[None], model.halves), model.head)
    call = Call(kind, x, section_for(kind, x, bits), bits, rotation_size(model.head), rope)
    if kind is Kind.DECODE_KEYS:
        NUMPY.encode_channels(x, bits, rope, np.ones((1, model.dim), np.float32), call.section)
    elif kind is Kind.DECODE_VALUES:
        NUMPY.encode_rotated(x, bits, call.block, call.section)
    return call


def rows(programs: list[Program], options: Options) -> Iterator[dict[str, Any]]:
    kinds = (Kind.DECODE_KEYS, Kind.DECODE_VALUES, Kind.ENCODE_KEYS, Kind.ENCODE_VALUES)
    for model, kind, bits in product(MODELS, kinds, (4,) if options.quick else BITS):
        call = call_of(kind, model, bits, options.seed)
        counts = {program.target.name: program.instructions(call) / call.plane.size for program in programs}
        row: dict[str, Any] = {"model": model.name, "call": kind.name.lower(), "bits": bits}
        row |= {name: sig(count) for name, count in counts.items()}
        row["over_avx2"] = sig(counts[NEON.name] * NEON.bits / (counts[AVX2.name] * AVX2.bits))
        say(" ".join(f"{name} {value}" for name, value in row.items()))
        yield row


def measure(options: Options) -> Result:
    for target in TARGETS:
        if (what := target.missing()) is not None:
            raise SystemExit(f"instructions: {what}")
    found = list(rows([build(target, options.folder) for target in TARGETS], options))
    bars = [
        Bar(f"{row['model']} {row['call']} {row['bits']} bits: NEON over AVX2", row["over_avx2"], MOST_OVER_AVX2, True)
        for row in found
    ]
    return Result("none: made values", {"rows": found}, bars)


if __name__ == "__main__":
    sys.exit(main("instructions", __doc__ or "", measure))
