"""A daemon with policies that settings do not offer, and whose answers never end before their ``max_tokens``.

``python -m bench.replaying.daemon CHOICES ...``: CHOICES is a JSON object of fields of PlannerChoices; what follows are
options of ``llmaas serve``. It ends at SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from typing import Any


def main() -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported, as the daemon does
    from llmaas.cli import serve
    from llmaas.cli.log_format import log_to_stderr

    parser = argparse.ArgumentParser()
    parser.add_argument("choices", type=json.loads)
    serve.add_arguments(parser)
    args = parser.parse_args()
    log_to_stderr("info", "text")
    asyncio.run(_serve(args, args.choices))
    return 0


async def _serve(args: argparse.Namespace, choices: dict[str, Any]) -> None:
    from bench.lib.engine import EndlessEngine
    from llmaas.cli.options import loaded
    from llmaas.cli.runtime import running

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with running(loaded(args).config, EndlessEngine, choices=choices):
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
