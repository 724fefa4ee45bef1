"""The engine port: everything the service asks of a model runtime.

Law: every method runs on the engine's one thread (see ``engine/thread.py``), except ``abort`` and the
pure text methods ``tokenize``, ``piece``, ``render``, ``check_sampling``, which are safe anywhere. An
engine keeps no idea of contexts, chunks or apps: it knows sequences (0 .. n_seqs-1), positions and cells.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmaas.calls import Sampling
from llmaas.records import F32, KvSlab, Message, ModelInfo, Queries, Rope


@dataclass(frozen=True, slots=True)
class BatchItem:
    """Consecutive tokens of one sequence, at positions ``pos .. pos+len(tokens)-1``.

    With a ``sampler`` the engine draws the token that follows the last one, by what ``set_sampler`` made under this
    number; None: nothing is drawn.
    """

    seq: int
    pos: int
    tokens: Sequence[int]
    sampler: int | None = None


class Halt:
    """A flag between threads, which C can read as well: begin no more steps in a row."""

    def __init__(self) -> None:
        self._cell = ctypes.c_int32(0)
        self.address = ctypes.addressof(self._cell)

    def set(self) -> None:
        self._cell.value = 1

    def clear(self) -> None:
        self._cell.value = 0

    @property
    def is_set(self) -> bool:
        return self._cell.value != 0


class Aborted(Exception):
    """``abort`` was called while a step ran. The step's cells are gone; the sequences stand as before it."""


class CellsFull(Exception):
    """A step or an import found no free cell; nothing was changed."""


class Engine(Protocol):
    """A model runtime that keeps sequences in cells."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def n_cells(self) -> int:
        """Cells in all, shared by every sequence."""

    @property
    def n_seqs(self) -> int:
        """Sequences that may be in cells at once."""

    @property
    def max_batch(self) -> int:
        """Most tokens that one step may hold, over all its items."""

    # -- text, safe on any thread

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        """Token ids of ``text``.

        ``special`` parses special tokens; ``bos`` adds the model's start token, if it wants one.
        """

    def piece(self, token: int) -> bytes:
        """The bytes of a token; may be part of a UTF-8 character. Special tokens give b""."""

    def is_end(self, token: int) -> bool:
        """True if the token ends a generation."""

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        """Messages through the model's chat template; with ``answer`` ready for the model's turn.

        Raises BadRequest if the template refuses the messages.
        """

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise BadRequest for a grammar or JSON schema that cannot be used, with what is wrong with it. Takes up to
        half a second for the largest."""

    # -- sequences

    def set_sampler(self, sampler: int, sampling: Sampling | None, past: Sequence[int] = ()) -> None:
        """Make a fresh sampler under any number from 0 on; None frees it. Raises what ``check_sampling`` raises.

        ``past``: the tokens before the answer, as many of the last as penalties should look at.

        A sampler belongs to an answer, not to a sequence: an answer that is interrupted may go on in another one, and
        its sampler's state (random numbers, what was said, where its grammar stands) goes on with it.
        """

    def step(self, items: Sequence[BatchItem], adapter: str = "") -> list[int | None]:
        """Run one batch; the drawn token per item, None where there is no ``sampler``.

        ``adapter``: name of a loaded adapter that the whole batch is computed with, "" for the bare model. What cells
        hold stays as it was computed: whose KV may follow whose is for the caller to know.

        Each item's ``pos`` must be the sequence's present length. Raises Aborted, CellsFull,
        EngineFailed; after any of them the sequences are as before the call.
        """

    def load_adapter(self, name: str, path: Path) -> None:
        """Bring a LoRA adapter (arXiv 2106.09685) into memory under a name that is free.

        Raises AdapterUnreadable, AdapterMismatch; nothing was changed then.
        """

    def unload_adapter(self, name: str) -> None:
        """Free a loaded adapter. KV that was computed with it stays."""

    def steps(
        self, items: Sequence[BatchItem], most: int, seconds: float, halt: Halt, adapter: str = ""
    ) -> list[list[int]]:
        """At most ``most`` steps in a row, for items of one token each that all draw: what each step drew.

        It ends after a step that draws an end token, that ends after ``seconds``, or during which ``halt`` was set,
        and whenever else it likes. Raises what ``step`` raises if the first step fails; at a later one it ends.
        """

    def length(self, seq: int) -> int:
        """Tokens of the sequence in cells (its positions are 0 .. length-1)."""

    def logits(self, item: int = -1) -> F32:
        """A copy of the model's next-token logits (n_vocab), before any sampler, for that item of the last step.

        ValueError unless the item drew.
        """

    def drop(self, seq: int, start: int) -> None:
        """Remove the sequence's positions from ``start`` on."""

    def copy(self, src: int, dst: int, stop: int) -> None:
        """Let empty ``dst`` share the first ``stop`` positions of ``src``, by reference where the runtime can."""

    # -- KV in and out

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        """The KV of positions start .. stop-1, as views of a buffer that stays valid as long as the slab."""

    def blank(self, n_tokens: int) -> KvSlab:
        """A writable slab for ``load``, in the runtime's own layout so that nothing is copied twice.

        Safe on any thread.
        """

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        """Put a slab from ``blank`` (or ``export``) into cells at positions start .. start+n_tokens-1.

        ``start`` must be the sequence's present length. Raises CellsFull, EngineFailed.
        """

    # -- what the model looks for in the KV

    @property
    def rope(self) -> Rope | None:
        """How this model turns keys by position, the same at every start; None: unknown, or not at all."""

    @property
    def windows(self) -> tuple[int, ...]:
        """How many tokens each layer looks back, itself included; 0: all of them. Empty: every layer sees all."""

    def key_weights(self) -> F32 | None:
        """Root mean square (n_layer, k_dim) of the queries that met each channel of a key, over all sampled until now.

        Both channels of a rotary pair have the same, so it holds for keys turned by any angle. All are positive.
        None until some queries were seen, or if the engine sees none.
        """

    def take_queries(self, seq: int) -> Queries | None:
        """The queries that steps of the sequence sampled since they were taken last, but for positions dropped since.

        None if there are none, or the engine sees none. Which positions are sampled depends on the position only; older
        queries are thinned out when they become too many.
        """

    def set_threads(self, n: int) -> None:
        """Compute with ``n`` threads from the next step on. Never more than the engine was made with; at least 1.

        Another number rounds sums differently, as another batch does.
        """

    def abort(self) -> None:
        """Make the step that runs now raise Aborted, soon. From any thread; no step running: no effect."""

    def close(self) -> None:
        """Free the model and the cells. The engine is of no use afterwards."""


def plain_steps(
    engine: Engine, items: Sequence[BatchItem], most: int, seconds: float, halt: Halt, adapter: str = ""
) -> list[list[int]]:
    """``Engine.steps`` by ``Engine.step``."""
    rows: list[list[int]] = []
    while len(rows) < most:
        try:
            row = [token for token in engine.step(items, adapter) if token is not None]
        except Exception:  # what was drawn before stands; if the fault stays, the next step says so
            if not rows:
                raise
            break
        rows.append(row)
        if halt.is_set or any(map(engine.is_end, row)):
            break
        items = [BatchItem(i.seq, i.pos + 1, (token,), i.sampler) for i, token in zip(items, row, strict=True)]
    return rows
