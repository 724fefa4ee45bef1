"""llama-server with its HTTP interface, from the PyPI package xllamacpp, until stdin ends.

``python bench/replaying/xllama_server.py PARAMS``: a JSON object of fields of xllamacpp's CommonParams, ``model``
and ``threads``. It prints one line of JSON, {address, version, flags}, when it serves. ``flags`` are the parameters
that differ from what the package sets by itself.

Law: nothing of llmaas is imported, because the program runs in an environment that has xllamacpp and nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib.metadata import version
from typing import Any


def main() -> None:
    xllamacpp: Any = importlib.import_module("xllamacpp")  # not everybody has it, mypy least of all
    given = json.loads(sys.argv[1])
    out = os.dup(1)  # llama.cpp may print on stdout
    os.dup2(2, 1)
    params = xllamacpp.CommonParams()
    params.model.path = given.pop("model")
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.pop("threads")
    params.port = given.pop("port")
    params.verbosity = 0
    for name, value in given.items():
        setattr(params, name, value)
    server = xllamacpp.Server(params)
    with os.fdopen(out, "w") as replies:
        found = {"address": server.listening_address, "version": version("xllamacpp"), "flags": given}
        print(json.dumps(found), file=replies, flush=True)
    sys.stdin.read()
    os._exit(0)  # its threads need not be waited for


if __name__ == "__main__":
    main()
