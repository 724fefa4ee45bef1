"""Measures, in a process of its own, how fast a model computes with a second copy of its weights and without.

Law: the process gives way to all others: it has the lowest priority, is the first that the system ends when memory runs
out, and does not begin without memory for a copy of all weights. It prints its result, or ends with a reason on stderr.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from llmaas.engine.base import BatchItem
from llmaas.engine.llama.context import ContextSettings
from llmaas.engine.llama.decoder import LlamaDecoder
from llmaas.engine.llama.devices import Placement
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.repack import BothPaces, Memo, Pace, key_of, measured
from llmaas.errors import ModelUnreadable

_log = logging.getLogger(__name__)
_PROCESS = f"""
import sys
from llmaas.give_way import give_way
give_way()  # first: importing this module takes some 0.2 s of a CPU, which the first calls need
from {__name__} import main
main(sys.argv[1])
"""
PROMPT, STEPS, ROUNDS = 32, 8, 3
"""Tokens of a measured prefill, decode steps after it, and how often; the fastest round counts."""
PASSES = 2
"""Times that each way is loaded and measured, in turn: what else runs meanwhile is not the same all the time."""


class RepackMeasurement:
    """Measures the model at ``path`` in the background, and keeps the result in ``memo``; to be closed.

    Whatever goes wrong is a line in the log: nothing is kept then, no copy is made, and the next start tries again.
    """

    def __init__(self, path: Path, memo: Memo, *, limit_s: float = 600.0) -> None:
        self._path, self._memo, self._limit_s = path, memo, limit_s
        self._closed = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="repack", daemon=True)
        try:
            command = [sys.executable, "-c", _PROCESS, os.fspath(path)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            self._failed(str(error))
            return
        self._thread.start()

    def close(self) -> None:
        """End what still runs, without a trace."""
        self._closed.set()
        if self._process is not None:
            self._process.kill()
            self._thread.join()

    def wait(self) -> None:
        """Return when it is over."""
        if self._process is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._process is not None
        with self._process:
            try:
                output, errors = self._process.communicate(timeout=self._limit_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._failed(f"it took more than {self._limit_s:.0f} s")
                return
        if status := self._process.returncode:
            lines = errors.strip().splitlines() or [f"it ended with {_status_text(status)}"]
            self._failed(lines[-1])
            return
        try:
            found, key = parse(output), key_of(self._path)
        except ValueError as error:
            self._failed(f"it printed no result: {error}")
            return
        except ModelUnreadable as error:
            self._failed(error.message)
            return
        self._memo.keep(key, self._path.name, found)
        end = "pays: the next start makes it" if found.pays else "does not pay"
        _log.info("%s: a second copy of weights %s (%s)", self._path.name, end, found)

    def _failed(self, reason: str) -> None:
        if not self._closed.is_set():
            _log.warning("cannot measure if a second copy of weights pays, so none is made: %s", reason)


def _status_text(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def parse(output: str) -> BothPaces:
    """What the process printed. Raises ValueError."""
    try:
        return measured(*json.loads(output))
    except TypeError as error:
        raise ValueError(str(error)) from error


def measure(path: Path) -> BothPaces:
    """The fastest of all passes. Raises ModelUnreadable, MachineError."""
    best = {True: Pace(0, 0), False: Pace(0, 0)}
    for _ in range(PASSES):
        for repack, before in best.items():
            found = _pace(path, repack=repack)
            best[repack] = Pace(*map(max, before, found))
    return BothPaces(best[True], best[False])


def _pace(path: Path, *, repack: bool) -> Pace:
    model = LlamaModel(path, repack=repack, placement=Placement(devices=()))
    decoder = LlamaDecoder(model, ContextSettings(256, 1, 1, PROMPT, PROMPT, "f16"))
    prompts, steps = [], []
    tokens = [token % model.n_vocab for token in range(1, PROMPT + 1)]
    try:
        for _ in range(ROUNDS):
            prompts.append(_seconds(decoder, 0, tokens))
            steps += [_seconds(decoder, PROMPT + i, tokens[:1]) for i in range(STEPS)]
            decoder.drop(0, 0)
    finally:
        decoder.close()
    return Pace(PROMPT / min(prompts), 1 / min(steps))


def _seconds(decoder: LlamaDecoder, pos: int, tokens: list[int]) -> float:
    began = time.thread_time()
    decoder.step([BatchItem(0, pos, tokens)], "")
    return time.thread_time() - began


def main(path: str) -> None:
    """What the process does that has given way."""
    sys.stdout.write(json.dumps(measure(Path(path))))
