"""A daemon with policies that settings do not offer, and whose answers never end before their ``max_tokens``.

``python -m bench.replaying.daemon CHOICES BYTES_PER_S ...``: CHOICES is a JSON object of fields of PlannerChoices; the
store reads so many bytes a second at most, or as fast as it can if that is 0; what follows are options of ``llmaas
serve``. It ends at SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys


def main() -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported, as the daemon does
    from llmaas.cli import serve
    from llmaas.cli.log_format import log_to_stderr

    parser = argparse.ArgumentParser()
    parser.add_argument("choices", type=json.loads)
    parser.add_argument("bytes_per_s", type=float)
    serve.add_arguments(parser)
    args = parser.parse_args()
    log_to_stderr("info", "text")
    asyncio.run(_serve(args))
    return 0


async def _serve(args: argparse.Namespace) -> None:
    from bench.lib.engine import EndlessEngine
    from bench.lib.throttle import SlowFiles
    from llmaas.cli.options import loaded
    from llmaas.cli.runtime import running

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    files = SlowFiles()
    async with running(loaded(args).config, EndlessEngine, choices=args.choices, files=files):
        with files.at(args.bytes_per_s):
            await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
