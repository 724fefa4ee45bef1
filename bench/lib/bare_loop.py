"""The bare llama.cpp loop that the service is compared with: a program of its own, as lean as Python allows.

``python bench/lib/bare_loop.py MODEL THREADS CELLS N_BATCH N_UBATCH N_SEQS UNIFIED`` reads one JSON request a line on
stdin and writes one reply a line on stdout. Times are in seconds since the begin of the request.

A request {tokens, n_new, marks} prefills the tokens into an empty sequence, in full batches cut at ``marks``, and draws
``n_new`` tokens greedily. The reply is {passed, drawn, cpu}: when each mark was reached, when each token was there, and
this process' CPU seconds until the first token and from there on.

A request {contexts, n_new} prefills each context into a sequence of its own, before the clock runs, and draws ``n_new``
tokens for all of them together, one batch a token. The reply is {drawn}: when each batch was done. If the contexts are
those of the request before, they are not prefilled again.

Law: nothing of llmaas is imported, not even by way of another bench, because importing its engine sets the environment
of the OpenMP runtime to what suits the service; this is what llama.cpp does by itself.
"""

from __future__ import annotations

import ctypes
import json
import sys
from itertools import pairwise
from time import perf_counter, process_time
from typing import Any

import llama_cpp.llama_cpp as llama_cpp

C: Any = llama_cpp


class BareLoop:
    """One llama.cpp context that draws greedily, for one sequence or for several that decode together."""

    def __init__(
        self, model: str, threads: int, cells: int, n_batch: int, n_ubatch: int, n_seqs: int, unified: int
    ) -> None:
        self._n_batch = n_batch
        self._model = C.llama_model_load_from_file(model.encode(), C.llama_model_default_params())
        params = C.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = cells, n_batch, n_ubatch
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max, params.kv_unified = n_seqs, bool(unified)
        params.flash_attn_type = 1
        params.no_perf = True
        self._ctx = C.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise RuntimeError("llama.cpp cannot make a context")
        self._memory = C.llama_get_memory(self._ctx)
        self._samplers = [C.llama_sampler_chain_init(C.llama_sampler_chain_default_params()) for _ in range(n_seqs)]
        for sampler in self._samplers:
            C.llama_sampler_chain_add(sampler, C.llama_sampler_init_greedy())
        self._batch = C.llama_batch_init(n_batch, 0, 1)
        self._contexts: list[list[int]] = []

    def run(self, tokens: list[int], n_new: int, marks: list[int]) -> dict[str, list[float]]:
        C.llama_memory_clear(self._memory, False)
        self._contexts = []
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        one = (ctypes.c_int32 * 1)()
        next_one = C.llama_batch_get_one(one, 1)
        ctx, sampler, decode, sample = self._ctx, self._samplers[0], C.llama_decode, C.llama_sampler_sample
        cuts = sorted({*range(0, len(tokens), self._n_batch), *marks, len(tokens)})
        passed, drawn, cpu = [], [], [process_time()]
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
            if not i:
                cpu.append(process_time())
        cpu.append(process_time())
        return {"passed": passed, "drawn": drawn, "cpu": [stop - start for start, stop in pairwise(cpu)]}

    def batch(self, contexts: list[list[int]], n_new: int) -> dict[str, list[float]]:
        self._prefill(contexts)
        batch, ctx, decode, sample = self._batch, self._ctx, C.llama_decode, C.llama_sampler_sample
        for seq, tokens in enumerate(contexts):
            self._put(seq, seq, len(tokens) - 1, tokens[-1], logits=1)
        batch.n_tokens = len(contexts)
        drawn = []
        begin = perf_counter()
        for _ in range(n_new):
            if decode(ctx, batch):
                raise RuntimeError("llama_decode failed")
            for seq, sampler in enumerate(self._samplers):
                batch.token[seq] = sample(sampler, ctx, seq)
                batch.pos[seq] += 1
            drawn.append(perf_counter() - begin)
        return {"drawn": drawn}

    def _prefill(self, contexts: list[list[int]]) -> None:
        """Prefill all but the last token of each context; the last ones are the first batch."""
        if contexts != self._contexts:
            C.llama_memory_clear(self._memory, False)
            for seq, tokens in enumerate(contexts):
                for start in range(0, len(tokens) - 1, self._n_batch):
                    part = tokens[start : min(start + self._n_batch, len(tokens) - 1)]
                    for i, token in enumerate(part):
                        self._put(i, seq, start + i, token)
                    self._batch.n_tokens = len(part)
                    if C.llama_decode(self._ctx, self._batch):
                        raise RuntimeError("llama_decode failed")
            self._contexts = contexts
        for seq, tokens in enumerate(contexts):
            C.llama_memory_seq_rm(self._memory, seq, len(tokens) - 1, -1)

    def _put(self, i: int, seq: int, pos: int, token: int, logits: int = 0) -> None:
        self._batch.token[i], self._batch.pos[i], self._batch.logits[i] = token, pos, logits
        self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, seq


def main() -> None:
    quiet = C.llama_log_callback(lambda level, text, data: None)
    C.llama_log_set(quiet, None)
    C.llama_backend_init()
    model, *numbers = sys.argv[1:]
    loop = BareLoop(model, *map(int, numbers))
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(loop.batch(**request) if "contexts" in request else loop.run(**request)), flush=True)


if __name__ == "__main__":
    main()
