"""A deterministic engine without a model: the port's rules, cells and KV traffic, in microseconds.

Law: the KV of a position is a function of all tokens up to it, and the next token is a function of all the KV before
it. So a chunk that is missing, misplaced, damaged or of another prefix changes the answer from there on, as with a
real model, and a test that compares with an undisturbed run finds it.

How: S is a running 64-bit sum of a sequence. Token t at the next position gets the digest h = mix(S, t), which is what
its KV row stands for (``rows.py``); then S becomes mix(S, h). An adapter is a number that is xored into S before t is
mixed in, so KV of another adapter is other KV.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llmaas.calls import Sampling
from llmaas.engine.base import Aborted, BatchItem, EmbeddingFacts, Prepared, Row
from llmaas.engine.fake import text as fake_text
from llmaas.engine.fake.adapters import FakeAdapters
from llmaas.engine.fake.embedding import FACTS, FakeEmbedding
from llmaas.engine.fake.rows import RowCode
from llmaas.engine.fake.sampling import FakeSamplers
from llmaas.engine.fake.sequences import FakeSequences
from llmaas.engine.fake.states import as_recurrent, digests_of, state_of
from llmaas.engine.plain_steps import plain_steps
from llmaas.engine.rules import check_export_state, check_load, check_load_state, check_seq, check_step
from llmaas.engine.tools import CALL_MARKS
from llmaas.errors import EngineFailed, LlmaasError
from llmaas.kv_arrays import F32, Bytes, KvSlab, Queries, Rope
from llmaas.mixing import mix
from llmaas.records import Geometry, Message, ModelInfo
from llmaas.weights_tier import WeightsTier

SMALL = Geometry(n_layer=2, k_dim=64, v_dim=64, head_dim_k=32, head_dim_v=32)


class FakeEngine:
    """An engine over nothing.

    ``end_rate`` is the chance that a drawn token ends the answer. ``step_time`` gives the seconds that a step of so
    takes; a step that takes any can be aborted. ``in_place``: whether ``begin_load`` gives rows that are in cells.
    ``recurrent``: its sequences cannot be cut, and go out and in as a whole.
    """

    def __init__(
        self,
        n_cells: int = 4096,
        n_seqs: int = 8,
        *,
        geometry: Geometry = SMALL,
        name: str = "fake",
        fingerprint: str = "fake-weights",
        vocab: str = "fake-bytes",
        former_vocab: str = "",
        max_batch: int = 512,
        end_rate: float = 0.0,
        step_time: Callable[[int], float] = lambda tokens: 0.0,
        sampling: Mapping[str, float] | None = None,
        in_place: bool = False,
        recurrent: bool = False,
    ) -> None:
        size = fake_text.N_VOCAB
        info = ModelInfo(
            name,
            fingerprint,
            vocab,
            geometry,
            n_cells,
            size,
            0,
            former_vocab=former_vocab,
            sampling=sampling or {},
            tools=True,
            tool_mark=CALL_MARKS[0],
        )
        self._info = as_recurrent(info) if recurrent else info
        self._max_batch, self._step_time = max_batch, step_time
        self._rows = RowCode(geometry)
        self._sequences = FakeSequences(n_cells, n_seqs)
        self._in_place = in_place
        self._unread: dict[int, KvSlab] = {}
        """For a sequence, rows that somebody may still write. They are read when the sequence is used next."""
        self._samplers = FakeSamplers(end_rate)
        self._adapters = FakeAdapters(fingerprint)
        self._embedding = FakeEmbedding(size)
        self.n_parked = 0
        """How often it was parked."""
        self._drawn_from: list[int | None] = []
        """The sum that each item of the last step drew from; None: it drew nothing."""
        self.n_threads: int | None = None
        """The last argument of ``set_threads``."""
        self._thread, self._aborted = threading.get_ident(), threading.Event()
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def n_cells(self) -> int:
        return self._sequences.n_cells

    @property
    def n_seqs(self) -> int:
        return len(self._sequences)

    @property
    def max_batch(self) -> int:
        return self._max_batch

    @property
    def n_samplers(self) -> int:
        """Samplers that were set and not freed."""
        return len(self._samplers)

    @property
    def token_bytes(self) -> int:
        return fake_text.MOST_BYTES

    # -- text

    def tokenize(
        self, text: str, *, special: bool, bos: bool, after: int | None = None, limit: int | None = None
    ) -> list[int]:
        return fake_text.tokenize(text, special=special, bos=bos, limit=limit)

    @property
    def control_names(self) -> tuple[str, ...]:
        return fake_text.CONTROL_NAMES

    def piece(self, token: int) -> bytes:
        return fake_text.piece(token)

    def is_end(self, token: int) -> bool:
        return fake_text.is_end(token)

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        return fake_text.render(messages, answer=answer)

    def check_sampling(self, sampling: Sampling) -> Prepared | None:
        return self._samplers.check(sampling)

    def stop_text(self) -> None:
        pass

    # -- steps

    def set_sampler(
        self, sampler: int, sampling: Sampling | None, past: Sequence[int] = (), answer: Sequence[int] = ()
    ) -> None:
        self._enter()
        self._samplers.set(sampler, sampling, past, answer)

    def sampler_failure(self, sampler: int) -> LlmaasError | None:
        self._enter()
        return self._samplers.failure(sampler)

    def load_adapter(self, name: str, path: Path) -> None:
        self._enter()
        self._adapters.load(name, path)

    def unload_adapter(self, name: str) -> None:
        self._enter()
        self._adapters.unload(name)

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        self._enter(*(item.seq for item in items))
        salt = self._adapters.salt(adapter)
        self._aborted.clear()
        self._drawn_from = []
        self._check(items)
        total = sum(len(item.tokens) for item in items)
        self._sequences.claim(total)
        seconds = self._step_time(total)
        if seconds > 0 and self._aborted.wait(seconds):
            self._sequences.unclaim(total)
            raise Aborted("the step was aborted")
        for item in items:
            self._advance(item, salt)
        most_s = draw_s if self._info.chunkable else math.inf
        return self._samplers.draws.row(items, self._drawn_from, self._samplers.draw, self._sequences.drop, most_s)

    steps = plain_steps

    def _check(self, items: Sequence[BatchItem]) -> None:
        check_step(items, self._sequences.lengths, self._samplers, fake_text.N_VOCAB, self._max_batch)

    def _advance(self, item: BatchItem, salt: int) -> None:
        for token in item.tokens:
            self._sequences.append(item.seq, mix(self._sequences.sum(item.seq) ^ salt, token))
        self._drawn_from.append(None if item.sampler is None else self._sequences.sum(item.seq))

    def logits(self, item: int = -1) -> F32:
        self._enter()
        if not self._drawn_from or (total := self._drawn_from[item]) is None:
            raise ValueError("that item of the last step drew nothing")
        return self._samplers.logits(total)

    # -- sequences

    def length(self, seq: int) -> int:
        self._enter(seq)
        return self._sequences.length(seq)

    def drop(self, seq: int, start: int) -> None:
        self._enter(seq)
        if not self._info.chunkable and 0 < start < self._sequences.length(seq):
            raise EngineFailed("the fake state cannot be cut in the middle")
        self._sequences.drop(seq, start)

    def copy(self, src: int, dst: int, stop: int) -> None:
        self._enter(src, dst)
        self._sequences.copy(src, dst, stop)

    # -- KV in and out

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        self._enter(seq)
        self._refuse_unless(chunks=True)
        return self._rows.encode(self._sequences.digests(seq, start, stop))

    def blank(self, n_tokens: int) -> KvSlab:
        return self._rows.blank(n_tokens)

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        self._enter(seq)
        self._refuse_unless(chunks=True)
        check_load(self._sequences.lengths, seq, start)
        self._rows.check_shape(slab)
        self._sequences.claim(slab.n_tokens)
        self._fill(seq, slab)

    def _fill(self, seq: int, slab: KvSlab) -> None:
        for digest in self._rows.decode(slab):
            self._sequences.append(seq, digest)

    def begin_load(self, seq: int, start: int, n_tokens: int) -> list[KvSlab] | None:
        self._enter(seq)
        check_load(self._sequences.lengths, seq, start)
        slab = self.blank(n_tokens)
        if not self._in_place:
            return None
        self._sequences.claim(n_tokens)
        self._unread[seq] = slab
        cut = n_tokens // 3  # as if free cells were in two places
        return [
            KvSlab(slab.k[:, part], slab.v[:, part]) for part in (slice(cut), slice(cut, None)) if slab.k[:, part].size
        ]

    # -- whole states

    def export_state(self, seq: int) -> Bytes:
        self._enter(seq)
        self._refuse_unless(chunks=False)
        check_export_state(self._sequences.lengths, seq)
        return state_of(self._sequences.digests(seq, 0, self._sequences.length(seq)))

    def load_state(self, seq: int, n_tokens: int, state: Bytes) -> None:
        self._enter(seq)
        self._refuse_unless(chunks=False)
        check_load_state(self._sequences.lengths, seq, n_tokens)
        digests = digests_of(state, n_tokens)
        self._sequences.claim(n_tokens)
        for digest in digests:
            self._sequences.append(seq, digest)

    def _refuse_unless(self, *, chunks: bool) -> None:
        if self._info.chunkable is not chunks:
            raise EngineFailed("the fake state goes out and in " + ("as a whole" if chunks else "in chunks"))

    # -- what the model looks for: nothing, as every bit of the KV matters alike

    @property
    def rope(self) -> Rope | None:
        return None

    @property
    def windows(self) -> tuple[int, ...]:
        return ()

    def key_weights(self) -> F32 | None:
        self._enter()
        return None

    def take_queries(self, seq: int) -> Queries | None:
        self._enter(seq)
        return None

    # -- embeddings

    @property
    def embedding(self) -> EmbeddingFacts | None:
        return FACTS

    def embed(self, pos: int, tokens: Sequence[int]) -> F32:
        self._enter()
        self._embedding.check(pos, tokens)
        time.sleep(self._step_time(len(tokens)))
        return self._embedding.add(pos, tokens)

    def end_embedding(self) -> None:
        self._enter()
        self._embedding.clear()

    # -- threads and the end

    def set_threads(self, n: int, *, spin: bool = False, apart: bool = False) -> None:
        self._enter()
        if n < 1:
            raise ValueError(f"threads must be at least 1, not {n}")
        self.n_threads = n

    @property
    def weights_in(self) -> WeightsTier:
        return WeightsTier.PAGES

    def park(self) -> int:
        self._enter()
        self.n_parked += 1
        return 0

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None:
        self._closed = True

    def _enter(self, *seqs: int) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("the engine was called from another thread than its own")
        if self._closed:
            raise EngineFailed("the engine is closed")
        for seq in seqs:
            check_seq(seq, len(self._sequences))
            if (slab := self._unread.pop(seq, None)) is not None:
                self._fill(seq, slab)
