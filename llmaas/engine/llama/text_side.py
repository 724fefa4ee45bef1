"""What all engines over a GGUF model have: its text side, the thread that they belong to, and the end of it.

Law: the text methods are safe on any thread, also while the engine is being closed; whatever needs the thread calls
``_enter`` first.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from llmaas.calls import Sampling
from llmaas.engine.base import Prepared
from llmaas.engine.llama.model import LlamaModel
from llmaas.errors import EngineFailed
from llmaas.records import Message
from llmaas.weights_tier import WeightsTier


class TextSide:
    """A part of ``Engine``, of a model that has been loaded. The thread that makes it is the engine's."""

    def __init__(self, model: LlamaModel) -> None:
        self._model: LlamaModel | None = model
        self._thread = threading.get_ident()

    @property
    def copied_bytes(self) -> int:
        """Memory of the second copy of weights, in an order that the CPU computes faster with (see ``repack``)."""
        return self._text().copied_bytes

    @property
    def device_bytes(self) -> Counter[str]:
        """Memory of the weights on devices that have their own, by name."""
        return self._text().device_bytes

    @property
    def weights_in(self) -> WeightsTier:
        return self._text().weights_in

    @property
    def token_bytes(self) -> int:
        return self._text().token_bytes

    def tokenize(
        self, text: str, *, special: bool, bos: bool, after: int | None = None, limit: int | None = None
    ) -> list[int]:
        return self._text().tokenize(text, special=special, bos=bos, after=after, limit=limit)

    @property
    def control_names(self) -> tuple[str, ...]:
        return self._text().control_names

    def piece(self, token: int) -> bytes:
        return self._text().piece(token)

    def is_end(self, token: int) -> bool:
        return self._text().is_end(token)

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        return self._text().render(messages, answer=answer)

    def check_sampling(self, sampling: Sampling) -> Prepared | None:
        return self._text().check_sampling(sampling)

    def stop_text(self) -> None:
        if (model := self._model) is not None:
            model.stop_text()

    def park(self) -> int:
        self._enter()
        return self._text().park()

    def _text(self) -> LlamaModel:
        model = self._model
        if model is None:
            raise EngineFailed("the engine is closed")
        return model

    def _enter(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("the engine was called from another thread than its own")
        self._text()

    def _let_go(self) -> None:
        """The model is freed as soon as no text method is using it."""
        self._model = None
