"""A daemon on the fake engine, which computes nothing: what is left is what everything else costs.

``python -m bench.lib.fake_daemon`` takes the options of ``llmaas serve`` and ends at SIGTERM. With ``--token-ms`` each
token of a step takes so long, as on a slower machine that has cores of its own: the engine sleeps.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmaas.engine.fake import FakeEngine


class InstantEngine(FakeEngine):
    """Made as ``llmaas serve`` makes its engine."""

    def __init__(self, model: Path, *, n_cells: int, n_seqs: int, n_batch: int, token_s: float = 0.0, **_: Any) -> None:
        super().__init__(n_cells, n_seqs, max_batch=n_batch, step_time=lambda n_tokens: n_tokens * token_s)


def main() -> int:
    from llmaas.cli import serve

    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--token-ms", type=float, default=0.0)
    pace, rest = own.parse_known_args()
    asyncio.run(_serve(parser.parse_args(rest), pace.token_ms / 1000))
    return 0


async def _serve(args: argparse.Namespace, token_s: float) -> None:
    from llmaas.cli.options import loaded
    from llmaas.cli.runtime import running

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    engine = functools.partial(InstantEngine, token_s=token_s)
    async with running(replace(loaded(args).config, repack="off"), engine):  # type: ignore[arg-type]
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
