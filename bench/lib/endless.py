"""A daemon whose answers never end before their ``max_tokens``: a bench that measures rates needs long answers.

``python -m bench.lib.endless`` takes the options of ``llmaas serve`` and ends at SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys


def main() -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported, as the daemon does
    from llmaas.cli import serve

    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    asyncio.run(_serve(parser.parse_args()))
    return 0


async def _serve(args: argparse.Namespace) -> None:
    from bench.lib.engine import EndlessEngine
    from llmaas.cli.options import loaded
    from llmaas.cli.runtime import running

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with running(loaded(args).config, EndlessEngine):
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
