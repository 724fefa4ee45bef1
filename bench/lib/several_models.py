"""A real daemon that serves several models: a front process, and a process for each model that is in use."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.lib.cli import Options
from bench.lib.daemon import wait_for_socket
from bench.lib.machine import ROOT
from llmaas.api.model_list import list_models


class SeveralModels:
    """Serves ``files`` as m0, m1 and so on, each with so many cells. ``more``: further flags of ``llmaas serve``."""

    def __init__(self, options: Options, files: Sequence[Path], cells: int, *more: str) -> None:
        self.socket = options.folder / "s"
        environ = os.environ | {"LLMAAS_DATA_DIR": str(options.folder / "data"), "LLMAAS_SOCKET": str(self.socket)}
        self.names = [f"m{i}" for i in range(len(files))]
        for name, file in zip(self.names, files, strict=True):
            add = ["model", "add", name, str(file), "--cells", str(cells), "--repack", "off"]
            subprocess.run([sys.executable, "-m", "llmaas", *add], env=environ, cwd=ROOT, check=True, stdout=sys.stderr)
        flags = ["--models", "all", "--threads", str(options.threads), *more]
        log = options.folder / "log"
        with log.open("wb") as stderr:
            command = [sys.executable, "-m", "llmaas", "serve", *flags]
            self._process = subprocess.Popen(command, env=environ, cwd=ROOT, stderr=stderr)
        wait_for_socket(self.socket, self._process, log)

    def state_of(self, name: str) -> str:
        """Where a model is."""
        return next(model.state for model in asyncio.run(list_models(self.socket)) if model.name == name)

    def process_of(self, name: str) -> psutil.Process:
        """The process of a model that is in memory."""
        children = psutil.Process(self._process.pid).children()
        return next(child for child in children if child.name() == f"llmaas {name}")

    def memory(self) -> int:
        """Bytes of RAM that all its processes take together; what they share counts once."""
        front = psutil.Process(self._process.pid)
        return sum(int(each.memory_full_info().pss) for each in [front, *front.children(recursive=True)])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(120)
