"""Grammars that answers must keep to, as llama.cpp follows them token by token.

Law: no text ends the process. llama.cpp calls ``abort`` on a token that the grammar does not allow, so none is accepted
that was not asked about before; the text itself is read over in ``gbnf.py`` and ``json_schema.py``.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

from llmaas.calls import Sampling
from llmaas.engine.llama.gbnf import HINT, check_gbnf
from llmaas.engine.llama.json_schema import schema_gbnf
from llmaas.engine.llama.lib import C, collect_errors, known_token
from llmaas.errors import BadRequest

_MAX_CPU_S = 2.0
"""CPU time that one question to a grammar may take. One that can be read in many ways takes twice as long per token."""
_SLICE = 2048
"""Candidates that llama.cpp is asked about at once. It looks at each for itself, so slices bound the time."""


class Grammar:
    """A grammar, and where an answer stands in it. Raises BadRequest for a text that cannot be used."""

    def __init__(self, vocab: Any, gbnf: str) -> None:
        check_gbnf(gbnf)
        self._sampler = _parse(vocab, gbnf)
        self.end = _end_token(vocab)
        self._one = (C.llama_token_data * 1)()
        self._out_of_time = False

    @classmethod
    def of(cls, vocab: Any, sampling: Sampling) -> Grammar | None:
        """The grammar that ``sampling`` asks for; None if it asks for none. Raises BadRequest."""
        gbnf = schema_gbnf(sampling.json_schema) if sampling.json_schema is not None else sampling.grammar
        return None if gbnf is None else cls(vocab, gbnf)

    def allows(self, token: int) -> bool:
        """True if the answer may go on with this token."""
        self._one[0].id, self._one[0].logit = token, 0.0
        self.mask(C.llama_token_data_array(self._one, 1, -1, False))
        return not self._out_of_time and bool(self._one[0].logit == 0.0)

    def mask(self, candidates: Any) -> None:
        """Set the logits of tokens that are not allowed now to minus infinity; of some, if it takes too long."""
        if self._out_of_time:
            return
        begun = time.thread_time()
        first, size = ctypes.addressof(candidates.data.contents), ctypes.sizeof(C.llama_token_data)
        for at in range(0, candidates.size, _SLICE):
            data = ctypes.cast(first + at * size, C.llama_token_data_p)
            part = C.llama_token_data_array(data, min(_SLICE, candidates.size - at), -1, False)
            C.llama_sampler_apply(self._sampler, ctypes.byref(part))
            if time.thread_time() - begun > _MAX_CPU_S:
                self._out_of_time = True
                return

    def accept(self, token: int) -> None:
        """Go on by a token that is allowed: llama.cpp aborts on any other."""
        begun = time.thread_time()
        C.llama_sampler_accept(self._sampler, token)
        self._out_of_time |= time.thread_time() - begun > _MAX_CPU_S

    def close(self) -> None:
        C.llama_sampler_free(self._sampler)


def check_grammar(vocab: Any, sampling: Sampling) -> None:
    """Raise BadRequest unless ``Grammar.of`` works. On any thread."""
    grammar = Grammar.of(vocab, sampling)
    if grammar is not None:
        grammar.close()


def _parse(vocab: Any, gbnf: str) -> Any:
    """A grammar sampler of llama.cpp."""
    with collect_errors() as errors:
        sampler = C.llama_sampler_init_grammar(vocab, gbnf.encode(), b"root")
    if not sampler:
        raise BadRequest(f"llama.cpp cannot use the grammar: {'; '.join(errors) or 'it gives no reason'}", hint=HINT)
    return sampler


def _end_token(vocab: Any) -> int:
    """The token that ends an answer for which a grammar allows nothing; 0 where the model has none that ends it."""
    ends = (known_token(C.llama_vocab_eos(vocab)), known_token(C.llama_vocab_eot(vocab)))
    return max((token for token in ends if token is not None), default=0)
