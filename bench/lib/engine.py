"""The real engine in this process, and the bare llama.cpp loop in a process of its own, to compare with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.lib.cli import Options
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.thread import EngineThread

CELLS = 8192
N_BATCH, N_UBATCH = 512, 512
"""What the daemon gives llama.cpp (llmaas/cli/runtime.py); a bare loop gets the same."""


class EndlessEngine(LlamaEngine):
    """No token ends an answer: each has as many tokens as it may."""

    def is_end(self, token: int) -> bool:
        return False


@contextmanager
def engine(
    options: Options, cells: int = CELLS, *, kind: Callable[..., LlamaEngine] = LlamaEngine
) -> Iterator[EngineThread]:
    """The real engine on a thread of its own, made as the daemon makes it, for the time of the block."""
    thread = EngineThread(
        lambda: kind(options.model, n_cells=cells, n_threads=options.threads, n_batch=N_BATCH, n_ubatch=N_UBATCH)
    )
    try:
        yield thread
    finally:
        thread.close()


class Bare:
    """The bare llama.cpp loop (``bare_loop.py``) in a process of its own, with the same batch sizes, threads and cells.

    It is not in this process, because GNU OpenMP would count the threads of two llama.cpp contexts. These are more than
    there are cores, so it would let them sleep between the nodes of a graph instead of spinning, which halves the
    decode speed of both.
    """

    def __init__(self, options: Options, cells: int = CELLS, n_seqs: int = 1, *, unified: bool = False) -> None:
        """``unified``: the sequences share one buffer of cells, as those of the service do."""
        numbers = [str(int(n)) for n in (options.threads, cells, N_BATCH, N_UBATCH, n_seqs, unified)]
        command = [sys.executable, str(Path(__file__).with_name("bare_loop.py")), str(options.model), *numbers]
        environ = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii"
        )

    def run(self, tokens: Sequence[int], n_new: int = 0, marks: Sequence[int] = ()) -> tuple[list[float], list[float]]:
        """Prefill ``tokens`` into an empty context and draw ``n_new`` more.

        Returns when each of ``marks`` (numbers of tokens prefilled) was reached, and when each new token was drawn, in
        seconds from the begin.
        """
        found = self._ask({"tokens": list(tokens), "n_new": n_new, "marks": list(marks)})
        return found["passed"], found["drawn"]

    def timed(self, tokens: Sequence[int], n_new: int) -> tuple[list[float], list[float]]:
        """As ``run``. Returns when each new token was drawn, and CPU seconds until the first and from there on."""
        found = self._ask({"tokens": list(tokens), "n_new": n_new, "marks": []})
        return found["drawn"], found["cpu"]

    def batch(self, contexts: Sequence[Sequence[int]], n_new: int) -> list[float]:
        """When the contexts, all decoding together, had each of ``n_new`` tokens, in seconds from the begin.

        Contexts that are those of the last request are not computed again.
        """
        return self._ask({"contexts": [list(tokens) for tokens in contexts], "n_new": n_new})["drawn"]

    def _ask(self, request: dict[str, Any]) -> dict[str, list[float]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError("the bare loop ended")
        found: dict[str, list[float]] = json.loads(reply)
        return found

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
