"""The engine port: everything that the service asks of a model runtime.

Law: an engine knows sequences, positions and cells, and has no idea of contexts, chunks or apps.

**Words.** A cell holds the KV of one token. A sequence is a row of tokens at positions 0, 1, 2 ..., each in a cell; its
number is in 0 .. n_seqs-1. A step is one batch of tokens, computed together.

**Threads.** Whoever builds an engine must call it on that same thread, and an engine raises RuntimeError on any other
(``engine/thread.py`` provides the thread). Safe on every thread are ``abort``, ``blank``, the properties, and the text
methods: ``tokenize``, ``piece``, ``is_end``, ``render``, ``check_sampling``, ``stop_text``.

**Errors.** An argument that breaks a rule given here raises ValueError (``engine/rules.py`` has the checks), a closed
engine EngineFailed. After an exception every sequence is as it was before the call; but where ``info.chunkable`` is
False, the sequences of a step that failed may be empty, and ``drop`` may raise EngineFailed for a sequence that has the
position ``start``, unless that is 0.
"""

from __future__ import annotations

import ctypes
import enum
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from llmaas.calls import Sampling
from llmaas.engine.row_pipe import Telling
from llmaas.errors import LlmaasError
from llmaas.frozen import frozen
from llmaas.kv_arrays import F32, Bytes, KvSlab, Queries, Rope
from llmaas.records import CHUNK_TOKENS, Message, ModelInfo
from llmaas.weights_tier import WeightsTier

_LOAD_BYTES = 3 << 20
_LOAD_CHUNKS = 4


def tokens_per_load(token_bytes: int) -> int:
    """Tokens, whole chunks of them, that are best put into cells by one call of ``Engine.load``: memory for as many is
    kept, and more would delay the first. ``token_bytes``: of one token's KV in f16.

    Chunks alone cost more calls: of 4096 tokens in 64 calls a quarter of the time is spent outside of copying.
    """
    fitting = _LOAD_BYTES // (CHUNK_TOKENS * token_bytes)
    return CHUNK_TOKENS * min(_LOAD_CHUNKS, max(1, fitting))


@frozen
class BatchItem:
    """Consecutive tokens of one sequence, at positions ``pos .. pos+len(tokens)-1``.

    ``sampler``: the number of a sampler, made by ``set_sampler``, with which the engine draws the token that follows
    the last one. None: nothing is drawn.
    """

    seq: int
    pos: int
    tokens: Sequence[int]
    sampler: int | None = None


class Undrawn(enum.Enum):
    """What an item has instead of a token."""

    LATER = "later"
    """To draw it takes longer than the step may. The sequence is without the item's last token again; an item that
    computes that token anew goes on with the draw."""


Row = Sequence[int | Undrawn | None]
"""What one step drew, parallel to its items; None: the item draws nothing."""


class Halt:
    """A flag that any thread sets to end ``Engine.steps`` after the step that runs now. C reads it at ``address``."""

    def __init__(self) -> None:
        self._cell = ctypes.c_int32(0)
        self.address = ctypes.addressof(self._cell)
        """Of a 32-bit integer that is 0 while the flag is not set. Valid as long as this object."""

    def set(self) -> None:
        self._cell.value = 1

    def clear(self) -> None:
        self._cell.value = 0

    @property
    def is_set(self) -> bool:
        return self._cell.value != 0


class Aborted(Exception):
    """``abort`` was called while a step ran. The step's cells are free again; the sequences are as before it."""


class CellsFull(Exception):
    """A step or a load needs more cells than are free. Nothing was changed."""


@frozen
class EmbeddingFacts:
    """What an engine's embeddings are like; constant from its constructor on."""

    width: int
    """Values of a vector."""
    limit: int
    """Most tokens of a text."""
    slice_tokens: int
    """Most tokens of one call of ``embed``."""
    end: int | None = None
    """The token that texts end with, where the model was trained so."""
    whole: bool = False
    """Whether all of a text must come in one call: its tokens see what follows them."""


class Prepared(Protocol):
    """A grammar or JSON schema that is ready for ``set_sampler`` as long as this is held."""

    @property
    def n_bytes(self) -> int:
        """About the memory that it takes."""


class Engine(Protocol):
    """A model runtime that keeps sequences in cells."""

    # -- what it is; constant from the constructor on

    @property
    def info(self) -> ModelInfo:
        """Name, identity and sizes of the model. Equal for two engines of one model."""

    @property
    def n_cells(self) -> int:
        """Cells in all, shared by every sequence."""

    @property
    def n_seqs(self) -> int:
        """Sequences that may be in cells at once."""

    @property
    def max_batch(self) -> int:
        """Most tokens that one step may hold, over all its items."""

    @property
    def token_bytes(self) -> int:
        """Bytes of text that one token stands for at most."""

    # -- text

    def tokenize(
        self, text: str, *, special: bool, bos: bool, after: int | None = None, limit: int | None = None
    ) -> list[int]:
        """Token ids of ``text``.

        ``special``: parse names of control tokens. Without it they are plain text, and no text becomes a control token;
        tokens that a vocabulary calls user-defined are text, and are parsed either way. ``bos``: begin with the model's
        start token, if it wants one and the text does not begin with it. ``after``: the token that the text follows; a
        vocabulary that puts a space in front of a text puts none where the text goes on from other text.

        Raises ContextTooLong if there are more than ``limit`` tokens, long before all of a text that is much too long
        has been looked at; and BadRequest for a text that the tokenizer cannot read in bounded time and memory. Takes
        up to a second for the longest texts that it reads.
        """

    @property
    def control_names(self) -> tuple[str, ...]:
        """The names of control tokens: texts that ``tokenize`` makes control tokens of with ``special``, and never
        without. The same tuple at each call."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token; they may be part of a UTF-8 character. b"" for special tokens."""

    def is_end(self, token: int) -> bool:
        """True if the token ends an answer."""

    def render(self, messages: Sequence[Message], *, answer: bool) -> str:
        """Messages through the model's chat template; with ``answer`` up to where the model begins to speak.

        A first message of the role ``tools`` lists tools (``engine/tools.py``), which the template writes where it
        likes. Takes seconds at most. Raises BadRequest if the template refuses the messages, has no place for tools,
        takes longer, or makes more text than any context holds.
        """

    def check_sampling(self, sampling: Sampling) -> Prepared | None:
        """Make a grammar or JSON schema ready for ``set_sampler``, and keep it so while the result is held. Raises
        BadRequest, with what is wrong, if it cannot be used, and Busy if too many others are being read or held.

        Takes some milliseconds, and a few seconds at most.
        """

    def stop_text(self) -> None:
        """Let ``render`` and ``tokenize`` of long texts, those that run and those that come, end with ShuttingDown."""

    # -- steps

    def set_sampler(
        self, sampler: int, sampling: Sampling | None, past: Sequence[int] = (), answer: Sequence[int] = ()
    ) -> None:
        """Make a fresh sampler under a number of the caller's choice, 0 or more. None frees the number if it is in use.

        ``past``: tokens before the answer, of which the last ``penalty_last_n`` count for penalties. ``answer``: tokens
        that the answer has already, drawn by another sampler with the same ``sampling`` and seed: this one goes on as
        that would have. Where they break a grammar it draws an end token, and ``sampler_failure`` says so. Raises
        BadRequest as ``check_sampling`` does.

        A sampler belongs to an answer, not to a sequence: an answer that was interrupted may go on in another sequence,
        and its sampler goes on with it: random numbers, the tokens drawn, the place in a grammar.
        """

    def sampler_failure(self, sampler: int) -> LlmaasError | None:
        """Why a sampler has drawn an end token though its answer is not complete; None if it has not.

        A grammar can be of the kind that takes more and more work with each token. An answer that would break it, or
        take all the engine's time, ends instead.
        """

    def load_adapter(self, name: str, path: Path) -> None:
        """Bring a LoRA adapter (arXiv 2106.09685) into memory, under a name that is not "" and not in use.

        Raises AdapterUnreadable if the file is gone, torn or no adapter, AdapterMismatch if it is one for another
        model. The file may go afterwards.
        """

    def unload_adapter(self, name: str) -> None:
        """Free a loaded adapter. KV that was computed with it stays."""

    def step(self, items: Sequence[BatchItem], adapter: str = "", *, draw_s: float = math.inf) -> Row:
        """Run one batch. Returns the drawn token of each item, None for an item without ``sampler``.

        A batch holds 1 .. max_batch tokens. A sequence appears at most once, and its item's ``pos`` is the sequence's
        length. ``adapter``: name of the loaded adapter with which the whole batch is computed, "" for the bare model.
        Cells keep what they were computed with: the caller knows whose KV may follow whose.

        ``draw_s``: seconds that draws by grammars may take together, about; those that take longer are LATER. No bound
        where ``info.chunkable`` is False: a token cannot be taken back there.

        Raises Aborted, CellsFull, ModelChanged if a file of the model is not what was loaded, NoNumbers if the model
        computes NaN or infinity for some of the items, and EngineFailed if the runtime fails.
        """

    def steps(
        self,
        items: Sequence[BatchItem],
        most: int,
        seconds: float,
        halt: Halt,
        adapter: str = "",
        telling: Telling | None = None,
    ) -> Sequence[Row]:
        """Run 1 .. ``most`` decode steps in a row. Returns the tokens that each step drew, one for each item.

        Every item has one token and a sampler; from the second step on its token is the one drawn last. The row ends
        after a step that draws an end token, that ends more than ``seconds`` after the call, or during which ``halt``
        was set. It may also end at any other step: an engine may run one step only (``engine/plain_steps.py``).

        With ``telling`` rows may be told while the row goes on, which then ends the next time that some would be told
        after ``seconds``. What was told stands. Not where ``info.chunkable`` is False.

        Raises what ``step`` raises if the first step fails. If a later one fails, the row ends before it.
        """

    def logits(self, item: int = -1) -> F32:
        """A copy of the model's next-token logits (n_vocab) after an item of the last step, before any sampler.

        ``item``: index into the items of that step, or of the last of several in a row; -1 is the last one, as in a
        list. ValueError unless it drew.
        """

    # -- sequences

    def length(self, seq: int) -> int:
        """Tokens of the sequence in cells: its positions are 0 .. length-1."""

    def drop(self, seq: int, start: int) -> None:
        """Remove the sequence's positions from ``start`` on. ``start`` may lie beyond the end."""

    def copy(self, src: int, dst: int, stop: int) -> None:
        """Let the empty sequence ``dst`` share the first ``stop`` positions of ``src``.

        The shared cells count once. Where the runtime has no sharing, it must copy.
        """

    # -- KV in and out

    def export(self, seq: int, start: int, stop: int) -> KvSlab:
        """The KV of positions start .. stop-1 of a sequence that has them.

        Its arrays may be views of a buffer, which stays valid and unchanged as long as any of them.
        """

    def blank(self, n_tokens: int) -> KvSlab:
        """A writable slab for ``load``, with anything in it.

        It is in the runtime's own layout, so that values written to it need not be copied again.
        """

    def load(self, seq: int, start: int, slab: KvSlab) -> None:
        """Put a slab from ``blank`` or ``export`` into cells, at positions start .. start+n_tokens-1.

        ``start`` is the sequence's length. What was exported and loaded again must come back bit by bit. Raises
        CellsFull, and EngineFailed if the runtime does not take the slab.
        """

    def begin_load(self, seq: int, start: int, n_tokens: int) -> list[KvSlab] | None:
        """Give positions start .. start+n_tokens-1 cells whose rows are still to be written. Returns those rows, in
        the cells themselves, as slabs of consecutive tokens.

        Any thread may write them, while steps of other sequences run. Until all are written, and nobody writes any
        more, nothing may be done with the sequence; ``drop`` then takes back those that were not written. What is
        written must be numbers. ``start`` is the sequence's length. None if the cells cannot be written so, now or
        ever: then nothing was changed, and there are ``blank`` and ``load``. Raises CellsFull.
        """

    # -- the state of models that are not chunkable; only where ``info.state`` is not None

    def export_state(self, seq: int) -> Bytes:
        """All that a sequence, which is not empty, consists of. Valid and unchanged as long as it is held."""

    def load_state(self, seq: int, n_tokens: int, state: Bytes) -> None:
        """Make the empty ``seq`` what a sequence of ``n_tokens`` was when its state was exported, bit by bit, by an
        engine whose ``info.fingerprint`` is the same.

        Raises CellsFull, and EngineFailed if the runtime does not take the state; the sequence is empty then.
        """

    # -- what the model looks for in the KV; an engine that does not know returns None

    @property
    def rope(self) -> Rope | None:
        """How this model rotates keys by position (RoPE), the same at every start.

        None if it does not, or in a way that is not known.
        """

    @property
    def windows(self) -> tuple[int, ...]:
        """How many tokens each layer looks back, itself included; 0: all of them. Empty if every layer sees all."""

    def key_weights(self) -> F32 | None:
        """Root mean square (n_layer, k_dim) of the queries that met each channel of a key, over all sampled until now.

        Both channels of a rotary pair have the same weight, so it holds for keys rotated by any angle. All are
        positive. None until enough queries were seen.
        """

    def take_queries(self, seq: int) -> Queries | None:
        """The queries that steps of the sequence sampled since the last call; of dropped positions there are none.

        Which positions are sampled depends on the position only. Older queries are thinned out when they become too
        many. None if there are none.
        """

    # -- embeddings

    @property
    def embedding(self) -> EmbeddingFacts | None:
        """What ``embed`` computes; None if this engine computes no embeddings."""

    def embed(self, pos: int, tokens: Sequence[int]) -> F32:
        """Compute the next tokens of a text, and return the embedding of the text as far as it has been given.

        That is a vector of ``embedding.width`` values whose Euclidean length is 1. ``pos`` 0 begins another text; else
        it is how many tokens the text has. At most ``embedding.slice_tokens`` come at a time, and ``embedding.limit``
        in all; all of them at once, if texts must be ``whole``. Sequences, cells and samplers are left as they are: the
        engine has memory of its own for this, which the first call takes and ``end_embedding`` frees. After an
        exception the text must be begun again.

        Raises MachineError if there is no memory, ModelChanged, NoNumbers, EngineFailed if the runtime fails, and, of
        whole texts, Aborted.
        """

    def end_embedding(self) -> None:
        """Free the memory that ``embed`` has taken, if any. The next text begins at 0."""

    # -- threads and the end

    def set_threads(self, n: int, *, spin: bool = False, apart: bool = False) -> None:
        """Compute with ``n`` threads from the next step on: 1 or more, and no more than the engine was made with.

        ``spin``: in steps of many tokens, too, threads may spin while they wait for each other, since each has a CPU
        to itself; else they fall asleep soon. ``apart``: during such steps no two threads share a
        CPU. Another number of threads rounds sums differently, as another batch does.
        """

    @property
    def weights_in(self) -> WeightsTier:
        """Where the weights are while they are used: PAGES, HELD or GPU. Constant; safe on any thread."""

    def park(self) -> int:
        """Give the memory of the weights back to the system, which reads them from their file again when they are
        needed: nothing else changes. Returns the bytes, 0 if there are none to be given back."""

    def abort(self) -> None:
        """Make the step that runs now raise Aborted, soon. Without effect if none runs, and after ``close``."""

    def close(self) -> None:
        """Free the model and the cells. Idempotent. Slabs that were exported before stay valid."""
