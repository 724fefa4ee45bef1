"""What one budget of bits over two models is worth, against the same bits for each of them.

Each model reads contexts of real text, and its planner measures how sensitive their chunks are. What chunks would do
with more bits (their curve) gives how many bits each model gets of a common budget, and how much of the error that
coding makes is left: predicted from the measured sensitivities, as the planner itself predicts it.

    python -m bench.shared_bits --model A.gguf --model B.gguf
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.stats import sig
from llmaas.api.async_client import AsyncClient
from llmaas.cli.runtime import running
from llmaas.config.sources import load
from llmaas.policies.bit_price import BitCurve, shared_bits
from llmaas.policies.bit_price.steps import PER_OCTAVE

BITS = (3.0, 3.5, 4.0, 5.0)
CONTEXTS, TOKENS = 4, 1536
_SETTLE_S = 60.0
_ROUNDED = 1.001
"""No more than without sharing."""
_CHARACTERS = 4
"""Of a token, about."""


def _manual(seed: int) -> str:
    """The topics of Python's manual, in an order that ``seed`` chooses."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    random.Random(seed).shuffle(names)
    return "\n\n".join(topics[name] for name in names)


async def curve_of(options: Options, model: Path, name: str) -> BitCurve:
    """What the chunks of a few contexts would do with bits, when all of them have been measured."""
    n_contexts, n_tokens = (2, 512) if options.quick else (CONTEXTS, TOKENS)
    text = _manual(options.seed)
    flags = {
        "model": str(model),
        "socket": str(options.folder / f"{name}.sock"),
        "data_dir": str(options.folder / name),
        "cells": "2048",
        "threads": str(options.threads),
        "repack": "off",
    }
    async with running(load(flags, {"HOME": str(options.folder)}).config) as runtime:
        async with await AsyncClient.connect(options.folder / f"{name}.sock", app="bench") as client:
            for i in range(n_contexts):
                context = await client.context(f"c{i}")
                await client.append(context.id, prompt=text[i * n_tokens * _CHARACTERS :][: n_tokens * _CHARACTERS])
                await client.generate(context.id, prompt=" So", max_tokens=64).done()
        await asyncio.wait_for(runtime.service.wait_idle(), _SETTLE_S)
        curve = runtime.service.budgets.bit_curve
    assert curve is not None and curve.values
    say(f"{name}: {curve.values / 1e6:.1f} M values, {len(curve.steps)} buckets of steps")
    return curve


def error_left(curve: BitCurve, bits: float) -> float:
    """The predicted error that steps beyond so many bits per value would remove; beyond 8 bits there are none."""
    left, error = curve.values * bits / 8 - curve.floor, 0.0
    for bucket, nbytes in sorted(curve.steps.items(), reverse=True):
        taken = min(max(left, 0.0), nbytes)
        error += (nbytes - taken) * 2 ** (bucket / PER_OCTAVE)
        left -= taken
    return error


def colder(curve: BitCurve, octaves: int) -> BitCurve:
    """The curve when nobody has used the model for so many half-lives of a chunk's heat, of an hour each."""
    steps = {bucket - octaves * PER_OCTAVE: nbytes for bucket, nbytes in curve.steps.items()}
    return replace(curve, steps=steps)


def compared(curves: Mapping[str, BitCurve], bits: float) -> tuple[dict[str, float], float]:
    """Bits of each model when they share, and the error then, against the same bits for each."""
    shared = shared_bits(bits, curves)
    alike = sum(error_left(curve, bits) for curve in curves.values())
    return shared, sum(error_left(curve, shared[name]) for name, curve in curves.items()) / alike


def measure(options: Options) -> Result:
    if len(options.models) != 2:
        raise SystemExit("bench.shared_bits takes two models: --model A.gguf --model B.gguf")
    first, second = (f"{i} {model.stem}" for i, model in enumerate(options.models))
    curves = {
        name: asyncio.run(curve_of(options, model, f"m{i}"))
        for i, (name, model) in enumerate(zip((first, second), options.models, strict=True))
    }
    cases = {
        "both in use": curves,
        f"{first}: 2 h idle": curves | {first: colder(curves[first], 2)},
        f"{second}: 2 h idle": curves | {second: colder(curves[second], 2)},
    }
    figures: dict[str, Any] = {"values": {name: curve.values for name, curve in curves.items()}}
    bars = []
    for case, found in cases.items():
        rows = figures[case] = {}
        for bits in BITS:
            shared, error = compared(found, bits)
            rows[f"{bits:g}"] = {"bits": {name: sig(each) for name, each in shared.items()}, "error": sig(error)}
            say(f"{case}: {bits:g} bits are {', '.join(f'{each:.2f}' for each in shared.values())}; error {error:.2f}")
            bars.append(
                Bar(f"{case}: error with {bits:g} bits shared, against the same for each", error, _ROUNDED, True)
            )
    return Result(" ".join(model.stem for model in options.models), figures, bars)


if __name__ == "__main__":
    sys.exit(main("shared_bits", __doc__ or "", measure))
