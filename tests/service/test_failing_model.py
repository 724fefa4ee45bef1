"""A real engine whose model fails under way: the call says why, the context is whole, and others go on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmaas.calls import Generation, Sampling, Turn
from llmaas.engine.llama import decoder
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.errors import EngineFailed, ModelChanged, NoNumbers
from llmaas.kv_arrays import F32
from llmaas.records import Message
from tests.support.loop import on_a_loop
from tests.support.random_models import write_hybrid, write_llama
from tests.support.service_house import APP, House, house
from tests.support.tiny_models import sentencepiece_tokens

TEXT = "the sea"
"""So short that it is computed in one step, since other steps round otherwise."""


def engine_of(path: Path) -> Any:
    """In place of the fake engine's class."""

    def make(n_cells: int, n_seqs: int) -> LlamaEngine:
        return LlamaEngine(path, n_cells=n_cells, n_seqs=n_seqs, n_threads=1)

    return make


async def ask(h: House, name: str, prompt: str = TEXT, n: int = 6) -> str:
    text, _ = await h.call(name, Turn(prompt=prompt), Generation(n, sampling=Sampling(temperature=0.0)))
    return text


@on_a_loop
async def test_a_file_that_is_cut_fails_calls_and_nothing_else(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf")
    async with house(tmp_path / "store", engine_type=engine_of(path)) as h:
        await h.service.create(APP, name="x", system=None)
        await ask(h, "x")
        before = h.tokens("x")
        whole = path.read_bytes()
        os.truncate(path, 5000)
        for _ in range(2):
            with pytest.raises(ModelChanged, match=r"m\.gguf") as error:
                await ask(h, "x")
            assert "restart" in error.value.hint
        assert h.tokens("x") == before
        await h.service.create(APP, name="y", system=None)
        await h.service.fork(APP, "x", name="z")
        await h.service.truncate(APP, "x", n_tokens=5, n_messages=None)
        await h.service.delete(APP, "y")
        assert {info.name for info in h.service.contexts(APP)} == {"x", "z"}
    path.write_bytes(whole)
    async with house(tmp_path / "store", engine_type=engine_of(path)) as h:
        assert h.tokens("z") == before
        await ask(h, "z")


@pytest.mark.parametrize("write", [write_llama, write_hybrid])
@on_a_loop
async def test_after_a_failed_step_the_context_is_computed_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path / "m.gguf")
    real: Callable[..., int] = decoder.C.llama_decode
    async with house(tmp_path / "store", engine_type=engine_of(path)) as h:
        for name in ("x", "y"):
            await h.service.create(APP, name=name, system=None)
            await ask(h, name)
        right = await ask(h, "y")

        def fail(*args: Any) -> int:
            real(*args)  # it has changed the state
            return -3

        with monkeypatch.context() as patch:
            patch.setattr(decoder.C, "llama_decode", fail)
            with pytest.raises(EngineFailed, match="code -3"):
                await ask(h, "x")
        assert await ask(h, "x") == right
        await h.call("y", Turn((Message("user", "and"),)), Generation(3))


@on_a_loop
async def test_a_text_that_makes_nan_fails_its_own_calls_only(tmp_path: Path) -> None:
    bad = "l"

    def poison(embeddings: F32) -> None:
        embeddings[[text for text, _ in sentencepiece_tokens()].index(bad)] = np.nan

    path = write_llama(tmp_path / "m.gguf", replaced={"token_embd.weight": poison})
    async with house(tmp_path / "store", engine_type=engine_of(path)) as h:
        for name in ("x", "y", "z"):
            await h.service.create(APP, name=name, system=None)
        right = await ask(h, "z")
        await h.service.truncate(APP, "z", n_tokens=0, n_messages=None)
        assert await ask(h, "x") == right
        before = h.tokens("x")
        for _ in range(4):
            spoilt, fine = await asyncio.gather(ask(h, "x", TEXT + bad), ask(h, "y"), return_exceptions=True)
            assert isinstance(spoilt, NoNumbers) and spoilt.code == "engine_failed" and "Try again" in spoilt.hint
            assert fine == right
            assert h.tokens("x") == before
            await h.service.truncate(APP, "y", n_tokens=0, n_messages=None)
        with pytest.raises(NoNumbers):
            await h.call("x", Turn(prompt=TEXT + bad), None)
        assert await ask(h, "z") == right
        assert h.tokens("x") == before
        await ask(h, "x")
