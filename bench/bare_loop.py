"""The bare llama.cpp loop that the service is held against: a program of its own, as lean as Python allows.

``python bench/bare_loop.py MODEL THREADS CELLS N_BATCH N_UBATCH``, one JSON request a line on stdin, one reply a line
on stdout. A request {tokens, n_new, marks} prefills the tokens into an empty sequence, in full batches cut at
``marks``, and draws ``n_new`` tokens greedily. The reply, in seconds since the begin: ``passed``, when each mark was
reached; ``drawn``, when each token was there.

Law: nothing of llmaas is imported, not even by way of another bench, because importing its engine sets the environment
of the OpenMP runtime to what suits the service; this is what llama.cpp does by itself.
"""

from __future__ import annotations

import ctypes
import json
import sys
from itertools import pairwise
from time import perf_counter
from typing import Any

import llama_cpp.llama_cpp as llama_cpp

C: Any = llama_cpp


class BareLoop:
    """One sequence, greedy."""

    def __init__(self, model: str, threads: int, cells: int, n_batch: int, n_ubatch: int) -> None:
        self._n_batch = n_batch
        self._model = C.llama_model_load_from_file(model.encode(), C.llama_model_default_params())
        params = C.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = cells, n_batch, n_ubatch
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        params.no_perf = True
        self._ctx = C.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise RuntimeError("llama.cpp cannot make a context")
        self._memory = C.llama_get_memory(self._ctx)
        self._sampler = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        C.llama_sampler_chain_add(self._sampler, C.llama_sampler_init_greedy())

    def run(self, tokens: list[int], n_new: int, marks: list[int]) -> dict[str, list[float]]:
        C.llama_memory_clear(self._memory, False)
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        one = (ctypes.c_int32 * 1)()
        next_one = C.llama_batch_get_one(one, 1)
        ctx, sampler, decode, sample = self._ctx, self._sampler, C.llama_decode, C.llama_sampler_sample
        cuts = sorted({*range(0, len(tokens), self._n_batch), *marks, len(tokens)})
        passed, drawn = [], []
        begin = perf_counter()
        for start, stop in pairwise(cuts):
            at = ctypes.cast(ctypes.addressof(ids) + 4 * start, ctypes.POINTER(ctypes.c_int32))
            if decode(ctx, C.llama_batch_get_one(at, stop - start)):
                raise RuntimeError("llama_decode failed")
            if stop in marks:
                passed.append(perf_counter() - begin)
        for i in range(n_new):
            if i and decode(ctx, next_one):
                raise RuntimeError("llama_decode failed")
            one[0] = sample(sampler, ctx, -1)
            drawn.append(perf_counter() - begin)
        return {"passed": passed, "drawn": drawn}


def main() -> None:
    quiet = C.llama_log_callback(lambda level, text, data: None)
    C.llama_log_set(quiet, None)
    C.llama_backend_init()
    model, *numbers = sys.argv[1:]
    loop = BareLoop(model, *map(int, numbers))
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(loop.run(request["tokens"], request["n_new"], request["marks"])), flush=True)


if __name__ == "__main__":
    main()
