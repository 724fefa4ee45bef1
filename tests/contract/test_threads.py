"""What every engine promises of threads, and of its end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Engine
from llmaas.errors import EngineFailed
from llmaas.records import Message
from tests.contract.support import feed, text_tokens


def test_only_text_and_abort_work_on_another_thread(engine: Engine) -> None:
    refused: list[str] = []

    def elsewhere() -> None:
        assert engine.piece(engine.tokenize("cat", special=False, bos=False)[0])
        engine.render([Message("user", "hi")], answer=True)
        engine.abort()
        engine.blank(2)
        calls: dict[str, Callable[[], object]] = {
            "step": lambda: engine.step([BatchItem(0, 0, [65])]),
            "drop": lambda: engine.drop(0, 0),
            "length": lambda: engine.length(0),
            "export": lambda: engine.export(0, 0, 1),
            "load": lambda: engine.load(0, 0, engine.blank(1)),
            "begin_load": lambda: engine.begin_load(0, 0, 1),
            "key_weights": engine.key_weights,
            "take_queries": lambda: engine.take_queries(0),
            "embed": lambda: engine.embed(0, [65]),
            "set_threads": lambda: engine.set_threads(1),
        }
        for name, call in calls.items():
            try:
                call()
            except RuntimeError:
                refused.append(name)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert refused == [
        "step",
        "drop",
        "length",
        "export",
        "load",
        "begin_load",
        "key_weights",
        "take_queries",
        "embed",
        "set_threads",
    ]


def test_the_number_of_threads_changes_between_steps_and_is_at_least_one(engine: Engine) -> None:
    tokens = text_tokens(engine, 12)
    for position, n in enumerate((1, 2, 1)):
        engine.set_threads(n)
        engine.step([BatchItem(0, 4 * position, tokens[4 * position : 4 * position + 4])])
    assert engine.length(0) == 12
    with pytest.raises(ValueError, match="not 0"):
        engine.set_threads(0)


def test_a_closed_engine_refuses_and_may_be_closed_again(make_engine: Callable[[], Engine]) -> None:
    engine = make_engine()
    engine.set_sampler(0, Sampling())
    feed(engine, 0, text_tokens(engine, 5))
    slab = engine.export(0, 0, 5)
    wanted = slab.k.copy()
    engine.close()
    engine.close()
    engine.abort()
    with pytest.raises(EngineFailed, match="closed"):
        engine.length(0)
    with pytest.raises(EngineFailed, match="closed"):
        engine.step([BatchItem(0, 5, [65])])
    assert np.array_equal(slab.k, wanted)
