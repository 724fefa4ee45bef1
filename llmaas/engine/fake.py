"""A deterministic engine without a model: the same rules, cells and KV traffic, in microseconds.

Law: the KV of a position is a function of the whole token prefix, and the next token is a function of all the KV
before it. So a chunk that is missing, misplaced, damaged or of another prefix changes what is said from there on,
just as with a real model, and a test that compares with an undisturbed run finds it.

How: S is a running 64-bit sum of a sequence. Token t at the next position gets the seed h = mix(S, t); its row is
the bits of mix(h, 0), mix(h, 1), ... as values -1 and +1 (so that 8- and 4-bit coding never changes a sign), the
first 64 of them being h itself; then S becomes mix(S, h). A row that comes in is read by its signs: if it is the row
of its own h, its digest is h, else a hash of all its signs. An adapter is a number that is xored into S before t is
mixed in: KV of another adapter is other KV.
"""

from __future__ import annotations

import hashlib
import random
import re
import secrets
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmaas.calls import Sampling
from llmaas.engine.base import Aborted, BatchItem, CellsFull, plain_steps
from llmaas.errors import AdapterMismatch, AdapterUnreadable, BadRequest, EngineFailed
from llmaas.records import F32, Geometry, KvSlab, Message, ModelInfo, Queries, Rope

BOS, EOS, IM_START, IM_END = 256, 257, 258, 259
N_VOCAB = 260
_SPECIAL = {"<|bos|>": BOS, "<|eos|>": EOS, "<|im_start|>": IM_START, "<|im_end|>": IM_END}
_SPECIAL_OR_TEXT = re.compile("|".join(map(re.escape, _SPECIAL)))
_SAYS = b"etaoin shrdlu cmfwyp"
"""What it answers with: bytes that are whole UTF-8 characters."""
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

SMALL = Geometry(n_layer=2, k_dim=64, v_dim=64, head_dim_k=32, head_dim_v=32)


@dataclass(slots=True, eq=False)
class _Cell:
    """A token's KV: its digest, and how many sequences share it."""

    digest: int
    shared_by: int = 1


def fake_adapter(weights: bytes, model: str = "fake-weights") -> bytes:
    """An adapter's file for the engine whose fingerprint is ``model``."""
    return f"fake-lora {model} {len(weights)}\n".encode() + weights


class FakeEngine:
    """An engine over nothing. ``end_rate`` is the chance that a drawn token ends the answer; ``step_time`` gives the
    seconds a step of so many tokens takes (a step that takes any can be aborted)."""

    def __init__(
        self,
        n_cells: int = 4096,
        n_seqs: int = 8,
        *,
        geometry: Geometry = SMALL,
        name: str = "fake",
        fingerprint: str = "fake-weights",
        vocab: str = "fake-bytes",
        max_batch: int = 512,
        end_rate: float = 0.0,
        step_time: Callable[[int], float] = lambda tokens: 0.0,
    ) -> None:
        self._n_bits = geometry.n_layer * (geometry.k_dim + geometry.v_dim)
        if self._n_bits < 64:
            raise ValueError(f"a fake row needs at least 64 values a token, not {self._n_bits}")
        self._thread = threading.get_ident()
        self._info = ModelInfo(
            name=name,
            fingerprint=fingerprint,
            vocab=vocab,
            geometry=geometry,
            n_ctx_train=n_cells,
            n_vocab=N_VOCAB,
            size_bytes=0,
        )
        self._n_cells, self._max_batch = n_cells, max_batch
        self._end_rate, self._step_time = end_rate, step_time
        self._cells: list[list[_Cell]] = [[] for _ in range(n_seqs)]
        self._sums: list[list[int]] = [[0] for _ in range(n_seqs)]  # S after 0, 1, 2 ... positions
        self._used = 0
        self._samplers: dict[int, tuple[Sampling, random.Random, deque[int]]] = {}
        self._drew: list[int | None] = []  # S of the last step's items
        self.n_threads: int | None = None
        """What ``set_threads`` was told last."""
        self._adapters = {"": 0}
        """What each mixes into the KV."""
        self._aborted = threading.Event()
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def n_cells(self) -> int:
        return self._n_cells

    @property
    def n_seqs(self) -> int:
        return len(self._cells)

    @property
    def max_batch(self) -> int:
        return self._max_batch

    # -- text

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        tokens = [BOS] if bos else []
        at = 0
        for found in _SPECIAL_OR_TEXT.finditer(text) if special else ():
            tokens += [*text[at : found.start()].encode("utf-8", "replace"), _SPECIAL[found.group()]]
            at = found.end()
        return tokens + list(text[at:].encode("utf-8", "replace"))

    def piece(self, token: int) -> bytes:
        _check_token(token)
        return bytes([token]) if token < 256 else b""

    def is_end(self, token: int) -> bool:
        _check_token(token)
        return token in (EOS, IM_END)

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        text = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
        return text + "<|im_start|>assistant\n" if answer else text

    def check_sampling(self, sampling: Sampling) -> None:
        if sampling.constrained:
            raise BadRequest("this engine has no grammars")

    # -- sequences

    def set_sampler(self, sampler: int, sampling: Sampling | None, past: Sequence[int] = ()) -> None:
        self._enter()
        if sampler < 0:
            raise ValueError(f"samplers are numbered from 0, not {sampler}")
        self._samplers.pop(sampler, None)
        if sampling is not None:
            self.check_sampling(sampling)
            seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
            self._samplers[sampler] = sampling, random.Random(seed), deque(past, sampling.penalty_last_n)

    def load_adapter(self, name: str, path: Path) -> None:
        """Of a file that ``fake_adapter`` made."""
        self._enter()
        if name in self._adapters:
            raise ValueError(f"there is an adapter {name!r} already")
        try:
            head, _, weights = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise AdapterUnreadable(f"cannot read the adapter {path}: {error.strerror}") from error
        kind, _, rest = head.decode("utf-8", "replace").partition(" ")
        model, _, size = rest.rpartition(" ")
        if kind != "fake-lora" or str(len(weights)) != size:
            raise AdapterUnreadable(f"{path} is torn, or no adapter")
        if model != self._info.fingerprint:
            raise AdapterMismatch(f"{path} was made for {model}, not for {self._info.fingerprint}")
        self._adapters[name] = int.from_bytes(hashlib.blake2b(weights, digest_size=8).digest(), "little")

    def unload_adapter(self, name: str) -> None:
        self._enter()
        if not name or name not in self._adapters:
            raise ValueError(f"there is no adapter {name!r}")
        del self._adapters[name]

    def step(self, items: Sequence[BatchItem], adapter: str = "") -> list[int | None]:
        self._enter()
        if adapter not in self._adapters:
            raise ValueError(f"there is no adapter {adapter!r}")
        self._aborted.clear()
        self._drew = []
        total = self._check(items)
        self._claim(total)
        seconds = self._step_time(total)
        if seconds > 0 and self._aborted.wait(seconds):
            self._used -= total
            raise Aborted("the step was aborted")
        return [self._advance(item, self._adapters[adapter]) for item in items]

    def _advance(self, item: BatchItem, salt: int) -> int | None:
        sums, cells = self._sums[item.seq], self._cells[item.seq]
        for token in item.tokens:
            digest = _mix(sums[-1] ^ salt, token)
            cells.append(_Cell(digest))
            sums.append(_mix(sums[-1], digest))
        self._drew.append(None if item.sampler is None else sums[-1])
        if item.sampler is None:
            return None
        return self._draw(item.sampler, sums[-1])

    def _draw(self, sampler: int, total: int) -> int:
        sampling, rng, past = self._samplers[sampler]
        if sampling.temperature > 0:
            total = _mix(total, rng.getrandbits(64))
        token = self._say(total)
        if sampling.penalises and token != IM_END:
            logits = self._logits(total)
            for known, count in Counter(past).items():
                logits[known] /= sampling.repeat_penalty  # all of them are positive
                logits[known] -= sampling.presence_penalty + count * sampling.frequency_penalty
            token = max(_SAYS, key=logits.__getitem__)
        past.append(token)
        return token

    def _say(self, total: int) -> int:
        if _mix(total, 1) / 2.0**64 < self._end_rate:
            return IM_END
        return _SAYS[_mix(total, 2) % len(_SAYS)]

    steps = plain_steps

    def length(self, seq: int) -> int:
        self._enter(seq)
        return len(self._cells[seq])

    def logits(self, item: int = -1) -> F32:
        self._enter()
        if not self._drew or (total := self._drew[item]) is None:
            raise ValueError("that item of the last step drew nothing")
        return self._logits(total)

    def _logits(self, total: int) -> F32:
        """All bits of S spread over the vocabulary, with the greedy token on top."""
        noise = _words(np.array([total], np.uint64), N_VOCAB)[0]
        logits: F32 = (noise / 2.0**64).astype(np.float32)
        logits[self._say(total)] += 2.0
        return logits

    def drop(self, seq: int, start: int) -> None:
        self._enter(seq)
        if start < 0:
            raise ValueError(f"cannot drop from position {start}")
        for cell in self._cells[seq][start:]:
            cell.shared_by -= 1
            self._used -= cell.shared_by == 0
        del self._cells[seq][start:], self._sums[seq][start + 1 :]

    def copy(self, src: int, dst: int, stop: int) -> None:
        self._enter(src, dst)
        if self._cells[dst]:
            raise ValueError(f"sequence {dst} is not empty")
        if not 0 <= stop <= len(self._cells[src]):
            raise ValueError(f"sequence {src} has {len(self._cells[src])} positions, not {stop}")
        self._cells[dst] = self._cells[src][:stop]
        self._sums[dst] = self._sums[src][: stop + 1]
        for cell in self._cells[dst]:
            cell.shared_by += 1

    # -- KV in and out

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        self._enter(seq)
        if not 0 <= start < stop <= len(self._cells[seq]):
            raise ValueError(f"sequence {seq} has no positions {start} .. {stop - 1}")
        digests = np.array([cell.digest for cell in self._cells[seq][start:stop]], np.uint64)
        values = self._bits(digests).astype(np.float16) * np.float16(2) - np.float16(1)
        slab = self.blank(stop - start)
        g = self._info.geometry
        n_k = g.n_layer * g.k_dim
        slab.k[:] = values[:, :n_k].reshape(-1, g.n_layer, g.k_dim).swapaxes(0, 1)
        slab.v[:] = values[:, n_k:].reshape(-1, g.n_layer, g.v_dim).swapaxes(0, 1)
        return slab

    def blank(self, n_tokens: int) -> KvSlab:
        if n_tokens < 1:
            raise ValueError(f"a slab holds at least one token, not {n_tokens}")
        g = self._info.geometry
        owner = np.empty((g.n_layer, n_tokens, g.k_dim + g.v_dim), np.float16)
        return KvSlab(owner[:, :, : g.k_dim], owner[:, :, g.k_dim :], owner=owner)

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        self._enter(seq)
        if start != len(self._cells[seq]):
            raise ValueError(f"sequence {seq} has {len(self._cells[seq])} positions: cannot load at {start}")
        g, n = self._info.geometry, slab.n_tokens
        if slab.k.shape != (g.n_layer, n, g.k_dim) or slab.v.shape != (g.n_layer, n, g.v_dim):
            raise ValueError("only a slab from blank or export can be loaded")
        self._claim(n)
        signs = np.concatenate([part.swapaxes(0, 1).reshape(n, -1) > 0 for part in (slab.k, slab.v)], axis=1)
        sums = self._sums[seq]
        for digest in self._digests(signs):
            self._cells[seq].append(_Cell(digest))
            sums.append(_mix(sums[-1], digest))

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

    def set_threads(self, n: int) -> None:
        self._enter()
        if n < 1:
            raise ValueError(f"threads must be at least 1, not {n}")
        self.n_threads = n

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None:
        self._closed = True

    # -- inside

    def _enter(self, *seqs: int) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("the engine was called from another thread than its own")
        if self._closed:
            raise EngineFailed("the engine is closed")
        for seq in seqs:
            if not 0 <= seq < len(self._cells):
                raise ValueError(f"sequence {seq} is not in 0 .. {len(self._cells) - 1}")

    def _check(self, items: Sequence[BatchItem]) -> int:
        """The tokens of a step that keeps the rules; ValueError for one that does not."""
        for item in items:
            self._enter(item.seq)
            if item.pos != len(self._cells[item.seq]):
                raise ValueError(f"sequence {item.seq} is {len(self._cells[item.seq])} long: not {item.pos}")
            if not item.tokens:
                raise ValueError("an item holds at least one token")
            if item.sampler is not None and item.sampler not in self._samplers:
                raise ValueError(f"there is no sampler {item.sampler}")
            for token in item.tokens:
                _check_token(token)
        total = sum(len(item.tokens) for item in items)
        if not 0 < total <= self._max_batch:
            raise ValueError(f"a step holds 1 .. {self._max_batch} tokens, not {total}")
        if len({item.seq for item in items}) != len(items):
            raise ValueError("a sequence may appear once in a step")
        return total

    def _claim(self, n: int) -> None:
        if self._used + n > self._n_cells:
            raise CellsFull(f"no {n} free cells: {self._used} of {self._n_cells} are in use")
        self._used += n

    def _bits(self, digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """The rows of ``digests`` as bits, shape (n, n_bits)."""
        words = _words(digests, -(-self._n_bits // 64))
        words[:, 0] = digests
        return np.unpackbits(words.astype("<u8").view(np.uint8), axis=1, count=self._n_bits)

    def _digests(self, signs: npt.NDArray[np.bool_]) -> list[int]:
        packed = np.packbits(signs, axis=1)
        own = np.ascontiguousarray(packed[:, :8]).view("<u8")[:, 0]
        sound = (self._bits(own) == signs).all(axis=1)
        return [
            int(h) if ok else int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
            for h, ok, row in zip(own, sound, packed, strict=True)
        ]


def _check_token(token: int) -> None:
    if not 0 <= token < N_VOCAB:
        raise ValueError(f"token {token} is not in the vocabulary of {N_VOCAB}")


def _mix(a: int, b: int) -> int:
    """64 bits that depend on every bit of both (the finaliser of SplitMix64: Steele, Lea, Flood 2014)."""
    z = (a + (b + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _words(seeds: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """``mix(seed, 0) .. mix(seed, n-1)`` of every seed, shape (len(seeds), n)."""
    with np.errstate(over="ignore"):
        z = seeds[:, None] + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
