"""A daemon on the fake engine, which computes nothing: what is left is what everything else costs.

``python -m bench.lib.fake_daemon`` takes the options of ``llmaas serve`` and ends at SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmaas.engine.fake import FakeEngine


class InstantEngine(FakeEngine):
    """Made as ``llmaas serve`` makes its engine."""

    def __init__(self, model: Path, *, n_cells: int, n_seqs: int, n_batch: int, **_: Any) -> None:
        super().__init__(n_cells, n_seqs, max_batch=n_batch)


def main() -> int:
    from llmaas.cli import serve

    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    asyncio.run(_serve(parser.parse_args()))
    return 0


async def _serve(args: argparse.Namespace) -> None:
    from llmaas.cli.options import loaded
    from llmaas.cli.runtime import running

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with running(replace(loaded(args).config, repack="off"), InstantEngine):  # type: ignore[arg-type]
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
