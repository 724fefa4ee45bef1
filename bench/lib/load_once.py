"""Loads a model once, in a process of its own, as far as its first token; prints the seconds as JSON.

``python -m bench.lib.load_once WAY MODEL THREADS MEMO``. Ways: ``bare`` is llama.cpp as it comes (its defaults: a map,
weights copied into another order where it knows one); ``ours`` reads ahead and copies nothing; ``parked`` does the
same, gives the pages back when the token is there, and brings them back: its seconds are those until the next token.
``held`` locks the pages in RAM, and the next token comes after the system was asked to take them, as it does where
memory is short. The clock begins when Python has loaded its packages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import monotonic
from typing import Any

from llmaas.config.models import parts_of
from llmaas.model_files.load_memo import LoadMemo
from llmaas.model_files.page_cache import resident_share
from llmaas.model_files.reads import FileReads

TOKENS = [1, 2, 3, 4]
CELLS, BATCH, UBATCH, SEQS = 2048, 512, 128, 4


def share_of(model: Path) -> float:
    """The share of the model's first file that is in the page cache; -1 if that cannot be known."""
    with model.open("rb") as file:
        found = resident_share(file)
    return -1.0 if found is None else found


def bare(model: Path, threads: int) -> dict[str, Any]:
    from bench.lib.bare_loop import BareLoop

    before, began = share_of(model), monotonic()
    BareLoop(str(model), threads, CELLS, BATCH, UBATCH, SEQS, 1).run(TOKENS, 1, [])
    return {"seconds": monotonic() - began, "resident_before": before}


def ours(model: Path, threads: int, memo: LoadMemo, *, then: str = "") -> dict[str, Any]:
    """``then``: what becomes of the pages when the first token is there, and what a second one is waited for:
    ``parked`` or ``held``; "": nothing."""
    from llmaas.engine.base import BatchItem
    from llmaas.engine.llama.context import ContextSettings
    from llmaas.engine.llama.decoder import LlamaDecoder
    from llmaas.engine.llama.model import LlamaModel

    before, began = share_of(model), monotonic()
    reads = FileReads(parts_of(model), memo)
    reads.start()
    loaded = LlamaModel(model, repack=False, held=then == "held")
    decoder = LlamaDecoder(loaded, ContextSettings(CELLS, SEQS, threads, BATCH, UBATCH, "f16"))
    decoder.step([BatchItem(0, 0, TOKENS)], "")
    found = {"seconds": monotonic() - began, "resident_before": before, "missing": reads.missing}
    reads.close()
    if not then:
        return found
    found["held"] = loaded.held
    began = monotonic()
    loaded.files.drop_pages() if then == "held" else loaded.park()
    found["parking"] = monotonic() - began
    found["resident_parked"], found["rss_parked"] = share_of(model), _rss()
    began = monotonic()
    if then == "parked":
        reads = FileReads(parts_of(model), memo)
        reads.start()
    decoder.step([BatchItem(0, len(TOKENS), TOKENS[:1])], "")
    found["back"] = monotonic() - began
    reads.close()
    return found


def _rss() -> int:
    lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    way, model, threads, memo = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), LoadMemo(Path(sys.argv[4]))
    found = bare(model, threads) if way == "bare" else ours(model, threads, memo, then="" if way == "ours" else way)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
