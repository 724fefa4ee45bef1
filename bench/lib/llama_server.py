"""llama-server, to compare with: llama.cpp's own server, from the PyPI package xllamacpp, in a process of its own.

``python bench/lib/llama_server.py MODEL THREADS CELLS`` reads one JSON request a line on stdin and writes one reply a
line on stdout. A request {tokens, n_new, seconds} prefills the tokens into an empty slot and draws ``n_new`` tokens
greedily, fewer if they take longer than ``seconds`` after the first. The reply is {drawn, cpu}: when each token was
there, in seconds since the begin of the request, and this process' CPU seconds until the first token and from there on.

It has the settings that llama-server has by itself, but for the number of threads, the cells, and no cache of prompts.

Law: nothing of llmaas is imported, because the program runs in an environment that has xllamacpp and nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import Any

VARIABLE = "BENCH_XLLAMACPP"
HOW_TO_INSTALL = (
    f"llama-server is left out: it comes from the package xllamacpp, which no Python that was named has. "
    f"python -m venv DIR && DIR/bin/pip install xllamacpp, then set {VARIABLE}=DIR/bin/python"
)


def python() -> str | None:
    """The Python that has xllamacpp: the one that the variable names, else this one. None if it has not."""
    program = os.environ.get(VARIABLE) or sys.executable
    try:
        found = subprocess.run([program, "-c", "import xllamacpp"], capture_output=True, check=False)
    except OSError:
        return None
    return None if found.returncode else program


def version(program: str) -> str:
    """The version of xllamacpp that the Python ``program`` has."""
    code = "from importlib.metadata import version; print(version('xllamacpp'))"
    return subprocess.run([program, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


class LlamaServer:
    """The program of this file, run by the Python ``program``. GNU OpenMP has its own defaults in it."""

    def __init__(self, program: str, model: str, threads: int, cells: int) -> None:
        command = [program, __file__, model, str(threads), str(cells)]
        ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "PYTHONPATH")
        environ = {name: value for name, value in os.environ.items() if name not in ours}
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def timed(self, tokens: Sequence[int], n_new: int, seconds: float) -> tuple[list[float], list[float]]:
        """When each new token was there, and CPU seconds until the first and from there on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"tokens": list(tokens), "n_new": n_new, "seconds": seconds}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError("llama-server ended")
        found: dict[str, list[float]] = json.loads(reply)
        return found["drawn"], found["cpu"]

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def answer(server: Any, tokens: list[int], n_new: int, seconds: float) -> dict[str, list[float]]:
    """Carry out one request."""
    drawn: list[float] = []
    first_cpu: list[float] = []
    begin_cpu, begin = process_time(), perf_counter()

    def piece(part: dict[str, Any]) -> bool:
        if "timings" in part:  # the last one, without a token
            return False
        drawn.append(perf_counter() - begin)
        if not first_cpu:
            first_cpu.append(process_time())
        return drawn[-1] > drawn[0] + seconds

    request = {"prompt": tokens, "max_tokens": n_new, "temperature": 0, "ignore_eos": True, "stream": True}
    server.handle_completions(request | {"cache_prompt": False}, piece)
    return {"drawn": drawn, "cpu": [first_cpu[0] - begin_cpu, process_time() - first_cpu[0]]}


def main() -> None:
    xllamacpp: Any = importlib.import_module("xllamacpp")  # not everybody has it, mypy least of all
    model, threads, cells = sys.argv[1:]
    out = os.dup(1)  # llama.cpp may print on stdout
    os.dup2(2, 1)
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.cache_ram_mib = int(cells), 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.verbosity = 0
    server = xllamacpp.Server(params)
    with os.fdopen(out, "w") as replies:
        for line in sys.stdin:
            print(json.dumps(answer(server, **json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
