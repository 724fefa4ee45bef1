"""Text to tokens, through ``llama_tokenize``, without what a text could do to the process or to others who wait.

Law: ``llama_tokenize`` is called here and nowhere else, with a piece of text whose length, words and stack are bounded.

A long text is cut into pieces, so that a text that is too long is refused soon, and so that none takes much memory: 100
to 190 bytes for each character of a piece. Text is cut only where no token of the vocabulary reaches over the cut and
where every pre-tokenizer ends a word anyway; so the tokens are those of the whole text:

* before a space between two ASCII letters;
* behind a newline alone between two characters that are no white space; not before a slash, which the expressions
  ``[\\r\\n/]*`` of some pre-tokenizers take together with the newline.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

import numpy as np

from llmaas.engine.llama.lib import C
from llmaas.engine.llama.text_runs import longest_run, refuse_long_runs
from llmaas.engine.llama.vocab import Vocab, VocabType
from llmaas.errors import BadRequest, Busy, ContextTooLong, ShuttingDown

T = TypeVar("T")

PIECE = 1 << 14
"""Characters of a piece, where the text can be cut."""
MOST_UNCUT = 1 << 17
"""Characters that may stand together where the text cannot be cut: 25 MB of memory while they are read, and 0.7 s if
they are names of control tokens, among which llama.cpp searches in quadratic time."""
_MEMORY_PER_BYTE = 192
"""Bytes that must be free for each byte of a piece, of which 170 are used at most: where llama.cpp gets no memory, it
ends the process."""
_SHORT_RUN = 500
"""Characters that a regular expression may match on any thread: 160 KB of stack."""
_STACK_PER_CHARACTER = 1024
"""Bytes that are reserved; 320 are used (``text_runs``)."""
_PAGE, _SPARE_STACK = 1 << 16, 1 << 20
_EACH, _NOTHING = re.compile(".", re.DOTALL), r"(?!)"
_WORDS = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")
_SPACES = re.compile(r"[ \t\r\n]{2,}")
_LINES = re.compile(r"(?<=[^\s\u180e\u200b\u2060\ufeff]\n)(?=[^\s\u180e\u200b\u2060\ufeff/])")


class Tokenizer:
    """Turns text into tokens of a vocabulary. Safe on any thread. ``piece``: characters after which a text is cut."""

    def __init__(self, vocab: Vocab, piece: int = PIECE) -> None:
        self._vocab, self._piece = vocab, piece
        self._mark = (vocab.own_character or "") if vocab.type is VocabType.SPM else ""
        """Put in front of text that goes on from other text, and its tokens taken off again: SentencePiece vocabularies
        want a space in front of a text. "" if this is not needed, or not possible."""
        self._n_mark = len(self._call(self._mark, special=False)) if self._mark else 0
        self._names = re.compile("|".join(map(re.escape, vocab.control_names)) or _NOTHING)
        self._by_words = vocab.type is VocabType.WPM  # then white space is no part of a token, however long it is
        can_cut = vocab.type is VocabType.BPE or self._by_words or bool(self._mark)
        self._makes_controls = vocab.type not in (VocabType.WPM, VocabType.UGM)
        kinds = ([_WORDS] if vocab.parts_words else []) + ([_LINES] if vocab.parts_lines else [])
        self._cuts = re.compile("|".join(kind.pattern for kind in kinds)) if can_cut and kinds else None
        self._deep = threading.Lock()
        self._stopped = False

    def tokens(self, text: str, *, special: bool, after: int | None = None, limit: int | None = None) -> list[int]:
        """See ``Engine.tokenize``; without the start token. Raises BadRequest, ContextTooLong, MemoryError."""
        text = text.encode("utf-8", "replace").decode()
        if self._by_words:
            text = _SPACES.sub(" ", text)
        if limit is not None and len(text) > limit * self._vocab.most_bytes:  # a character has a byte at least
            raise _too_long(limit)
        joined = after is not None and not self._vocab.is_named(after)
        tokens: list[int] = []
        for i, piece in enumerate(self._pieces(text)):
            if i and self._stopped:
                raise ShuttingDown("the daemon is stopping")
            tokens += self._piece_tokens(piece, special=special, joined=joined)
            if limit is not None and len(tokens) > limit:
                raise _too_long(limit)
            joined = True
        return tokens

    def stop(self) -> None:
        """Let texts of several pieces end with ShuttingDown, soon. From any thread."""
        self._stopped = True

    def _piece_tokens(self, text: str, *, special: bool, joined: bool) -> list[int]:
        """The tokens of a piece; ``joined``: it goes on from other text. Without ``special`` none is a control token:
        SentencePiece's merges end in any token that has the text, also in ``</s>``. Then the names are read in two.
        Words of a BERT or T5 do not, but may be unknown, which is no reason to cut a text."""
        tokens = self._read(text, special=special, joined=joined)
        for cuts in (self._names, _EACH):
            may = self._makes_controls and not special
            if not may or self._vocab.controls.isdisjoint(tokens) or not self._names.search(text):
                break
            tokens, start = [], 0
            for stop in (*(found.start() + 1 for found in cuts.finditer(text)), len(text)):
                tokens += self._read(text[start:stop], special=False, joined=joined or start > 0)
                start = stop
        return tokens

    def _read(self, text: str, *, special: bool, joined: bool) -> list[int]:
        mark, n_mark = (self._mark, self._n_mark) if joined else ("", 0)
        return self._safe_call(mark + text, special=special)[n_mark:]

    def _pieces(self, text: str) -> Iterator[str]:
        start = 0
        while start < len(text):
            end = self._end_of_piece(text, start)
            yield text[start:end]
            start = end

    def _end_of_piece(self, text: str, start: int) -> int:
        """Raises BadRequest. Looks at no more than what a piece may hold: searching keeps other threads from Python."""
        if self._cuts and (cut := self._cuts.search(text, start + self._piece, start + MOST_UNCUT + 2)):
            return cut.start()
        if len(text) - start > MOST_UNCUT:
            raise BadRequest(
                f"the text has more than {MOST_UNCUT} characters in a row without a place where this model's tokenizer "
                f"can cut it, from character {start} on",
                hint="Put line breaks into it.",
            )
        return len(text)

    def _safe_call(self, text: str, *, special: bool) -> list[int]:
        """``_call`` with enough stack for what the pre-tokenizer does. Raises BadRequest."""
        if self._vocab.type is not VocabType.BPE:
            return self._call(text, special=special)
        longest = longest_run(self._vocab.pre, text)
        refuse_long_runs(self._vocab.pre, text, longest)
        if longest <= _SHORT_RUN:
            return self._call(text, special=special)
        with self._deep:  # one at a time: what a stack has used stays in memory until the next is made
            return on_deep_stack(2 * longest * _STACK_PER_CHARACTER, lambda: self._call(text, special=special))

    def _call(self, text: str, *, special: bool) -> list[int]:
        data = text.encode()
        _refuse_without_memory(_MEMORY_PER_BYTE * len(data))
        room = len(data) + 16  # a token covers at least one byte, but some tokenizers add a space in front
        while True:
            found = np.empty(room, np.int32)
            pointer = found.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            n = int(C.llama_tokenize(self._vocab.handle, data, len(data), pointer, room, False, special))
            if n >= 0:
                tokens: list[int] = found[:n].tolist()
                return tokens
            room = -n


_stack_size = threading.Lock()
"""``threading.stack_size`` holds for the whole process: it is set, a thread started, and it is set back under this."""


def on_deep_stack(nbytes: int, do: Callable[[], T]) -> T:
    """``do()`` on a thread of its own with so many bytes of stack, or some more. Raises Busy if there is no memory."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(do())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="deep-stack", daemon=True)
    with _stack_size:
        before = threading.stack_size(-(-nbytes // _PAGE) * _PAGE + _SPARE_STACK)
        try:
            thread.start()
        except RuntimeError as error:
            raise Busy(f"no thread could be started to read the text: {error}") from error
        finally:
            threading.stack_size(before)
    thread.join()
    return done.result()


def _refuse_without_memory(nbytes: int) -> None:
    """Raises MemoryError where so many bytes cannot be had. They are given back at once, unused: that takes some
    microseconds. They are not malloc's: glibc keeps more for itself once it was given back a large piece."""
    try:
        mmap.mmap(-1, max(1, nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes to read a text with") from error


def _too_long(limit: int) -> ContextTooLong:
    return ContextTooLong(f"the text has more than {limit} tokens; at most {limit} fit")
