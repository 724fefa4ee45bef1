"""The codec's loops for 64-bit ARM, run by emulation: the same bytes and values as numpy's, and no scalar loops."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import numpy as np
import pytest

from bench.instructions import MODELS, TOKENS, call_of
from bench.lib.codec_calls import NEON, Call, Kind, Made, Program, buffer_of, build, plane, section_for
from bench.lib.machine import ROOT
from llmaas.kv_arrays import Rope
from llmaas.kvchunks.codec.kernels import NUMPY
from llmaas.kvchunks.codec.kernels_channels import BadWords, RopeRotation
from llmaas.kvchunks.codec.kernels_numpy import BITS, F16, F32, U8
from llmaas.kvchunks.codec.planes import rope_rotation

pytestmark = pytest.mark.skipif(NEON.missing() is not None, reason=str(NEON.missing()))


@pytest.fixture(scope="module")
def neon(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return build(NEON, tmp_path_factory.mktemp("neon"))


def by_numpy(call: Call) -> Made:
    """What numpy makes of copies of a call's plane and section."""
    x = plane(call.plane.shape)
    buffer_of(x)[:] = buffer_of(call.plane)
    section, result = call.section.copy(), 1
    match call.kind:
        case Kind.LARGEST:
            result = NUMPY.largest(x)
        case Kind.ENCODE_KEYS:
            assert call.weights is not None
            NUMPY.encode_channels(x, call.bits, call.rope, call.weights, section)
        case Kind.DECODE_KEYS:
            try:
                NUMPY.decode_channels(section, call.bits, call.rope, x)
            except BadWords:
                result = 0
        case Kind.ENCODE_VALUES:
            NUMPY.encode_rotated(x, call.bits, call.block, section)
        case Kind.DECODE_VALUES:
            NUMPY.decode_rotated(section, call.bits, call.block, x)
    return Made(result, buffer_of(x).tobytes(), section.tobytes())


def with_decoding(encode: Call) -> list[Call]:
    """A call that encodes, and one that decodes what numpy makes of it, into a plane full of something else."""
    kind = Kind.DECODE_KEYS if encode.kind is Kind.ENCODE_KEYS else Kind.DECODE_VALUES
    coded = np.frombuffer(by_numpy(encode).section, np.uint8).copy()
    into = plane(encode.plane.shape)
    return [encode, replace(encode, kind=kind, section=coded, plane=into)]


def values(rng: np.random.Generator, shape: tuple[int, int, int]) -> F16:
    """Normal values of some size, with large channels and, at times, zeros, -0 and subnormals among them."""
    x = plane(shape)
    x[...] = (rng.standard_normal(shape) + 4 * rng.standard_normal(shape[2])) * rng.choice([1e-6, 1e-3, 1.0, 30.0])
    few = rng.random(shape) < rng.choice([0, 0.3])
    x[few] = rng.choice(np.array([0.0, -0.0, 6e-8, -6e-8], np.float16), int(few.sum()))
    return x


def a_rotation(rng: np.random.Generator, head: int, layers: int, halves: bool) -> RopeRotation | None:
    pairs = int(rng.choice([head // 2, head // 2, head // 4]))
    angles = np.tile(1e4 ** -(np.arange(pairs) / max(1, pairs)), (layers, 1)).astype(np.float32)
    angles[1:] *= np.float32(rng.choice([1.0, 0.5]))
    return rope_rotation(Rope(angles, halves), head)


def keys(rng: np.random.Generator, head: int, bits: int, halves: bool | None) -> Call:
    layers, tokens, dim = (
        int(rng.integers(1, 3)),
        int(rng.choice([1, 7, 8, 33, 64, 77])),
        head * int(rng.integers(1, 4)),
    )
    x = values(rng, (layers, tokens, dim))
    rope = None if halves is None else a_rotation(rng, head, layers, halves)
    weights: F32 = rng.exponential(1, (layers, dim)).astype(np.float32) + np.float32(1e-9)
    return Call(Kind.ENCODE_KEYS, x, section_for(Kind.ENCODE_KEYS, x, bits), bits, rope=rope, weights=weights)


def rotated(rng: np.random.Generator, block: int, bits: int) -> Call:
    layers, tokens, dim = int(rng.integers(1, 3)), int(rng.choice([1, 7, 8, 33])), block * int(rng.integers(1, 4))
    x = values(rng, (layers, tokens, max(dim, 8)))
    return Call(Kind.ENCODE_VALUES, x, section_for(Kind.ENCODE_VALUES, x, bits), bits, block)


def same(program: Program, calls: list[Call]) -> None:
    for call, found in zip(calls, program.run(calls), strict=True):
        assert found == by_numpy(call), (call.kind.name, call.plane.shape, call.bits, call.block, call.rope)


@pytest.mark.parametrize("bits", BITS)
def test_keys_are_coded_and_decoded_to_the_same_bits_as_by_numpy(neon: Program, bits: int) -> None:
    rng = np.random.default_rng(bits)
    calls = [keys(rng, head, bits, halves) for head in (8, 24, 64, 80, 256) for halves in (None, False, True)]
    same(neon, [call for encode in calls for call in with_decoding(encode)])


@pytest.mark.parametrize("bits", BITS)
def test_values_are_coded_and_decoded_to_the_same_bits_as_by_numpy(neon: Program, bits: int) -> None:
    rng = np.random.default_rng(bits)
    calls = [rotated(rng, block, bits) for block in (1, 2, 4, 8, 16, 32, 64, 64, 128, 128)]
    same(neon, [call for encode in calls for call in with_decoding(encode)])


def test_every_finite_f16_survives_as_a_minimum_and_as_a_step(neon: Program) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = patterns[np.isfinite(patterns.view(np.float16))]
    words, zeros = np.full(finite.size, 2, np.uint16), np.zeros(finite.size, np.uint16)
    x, codes = plane((1, 8, finite.size)), np.zeros(2 * finite.size, np.uint8)
    minima: U8 = np.concatenate([words.view(np.uint8), finite.view(np.uint8), codes])
    steps: U8 = np.concatenate([((finite & 0x7FF0) | words).view(np.uint8), zeros.view(np.uint8), codes + 0x55])
    calls = [Call(Kind.DECODE_KEYS, x, section, 2) for section in (minima, steps)]
    same(neon, calls)
    made = neon.run(calls)[0].plane[: x.nbytes]
    assert np.array_equal(np.frombuffer(made, np.float16).reshape(x.shape)[0, 7], finite.view(np.float16))


def test_what_no_encoder_wrote_is_refused_with_the_plane_untouched(neon: Program) -> None:
    decode = with_decoding(keys(np.random.default_rng(1), 64, 4, True))[1]
    wrong = replace(decode, section=decode.section.copy())
    wrong.section[0] ^= 1
    (made,) = neon.run([wrong])
    assert made.result == 0 and made.plane == buffer_of(wrong.plane).tobytes()
    same(neon, [wrong])


def test_the_largest_magnitude_is_found_and_nan_is_above_all(neon: Program) -> None:
    calls = []
    for value in (2.0, -2.0, np.inf, -np.inf, np.nan):
        for at in ((0, 0, 0), (1, 4, 79)):
            x = plane((2, 5, 80))
            x[...] = np.random.default_rng(0).uniform(-1, 1, x.shape)
            x[at] = value
            calls.append(Call(Kind.LARGEST, x, np.zeros(0, np.uint8)))
    same(neon, calls)


@pytest.mark.parametrize(("kind", "most"), [(Kind.DECODE_KEYS, 9.0), (Kind.DECODE_VALUES, 8.0)])
def test_no_loop_that_decodes_is_scalar(neon: Program, kind: Kind, most: float) -> None:
    """One value at a time takes more than 20 instructions each. bench.instructions compares with AVX2."""
    call = call_of(kind, MODELS[0], 4, seed=1)
    assert 1 < neon.instructions(call) / (TOKENS * MODELS[0].dim) < most


def test_a_machine_whose_numbers_begin_with_the_highest_byte_is_left_to_numpy() -> None:
    source = ROOT / "llmaas" / "kvchunks" / "codec" / "_kvcodec.c"
    for order, ends in (("-mlittle-endian", 0), ("-mbig-endian", 1)):
        compiled = subprocess.run([NEON.compiler, order, "-fsyntax-only", source], capture_output=True, text=True)
        assert compiled.returncode == ends
        assert ("numpy kernels" in compiled.stderr) == bool(ends)
