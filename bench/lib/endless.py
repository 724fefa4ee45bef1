"""The daemon (``llmaas serve``), of whose model no answer ends before its ``max_tokens``: rates need long answers."""

from __future__ import annotations

import os
import sys


def main() -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the daemon does, before numpy comes in
    from llmaas.cli.main import main as command
    from llmaas.engine.llama.engine import LlamaEngine

    LlamaEngine.is_end = lambda self, token: False  # type: ignore[method-assign]
    return command()


if __name__ == "__main__":
    sys.exit(main())
