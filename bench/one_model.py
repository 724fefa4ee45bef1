"""How much memory a daemon with one model takes, against the version before it could serve several.

That version is taken from this clone by ``git archive``, and its C libraries are built as its ``setup.py`` says. Three
daemons take turns on the same file: of that version (``before``), of this one (``ours``), and of this one with the
model registered by a name (``registered``). Each is asked for one answer by the client of its own version; then its
resident memory is read, as the kernel counts it. The model's pages are mapped, and a part of all three.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import wait_for_socket
from bench.lib.machine import ROOT
from bench.lib.probes import memory
from bench.lib.stats import sig, summary

BEFORE = "fa33ed7"
"""The last commit without a registry."""
MOST_MB = 10.0
_OURS = ("ours", "registered")
_CELLS, _SETTLE_S = 2048, 2.0
_ASK = """\
import sys
from llmaas import Client
with Client(sys.argv[1], app="bench") as client:
    context = client.create().id
    client.generate(context, prompt="The quick brown fox jumps over the lazy dog. " * 20, max_tokens=8)
"""


def former(folder: Path) -> Path:
    """A checkout of the version before, ready to run. Raises RuntimeError where that cannot be made."""
    packed = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True)
    if packed.returncode:
        why = packed.stderr.decode("utf-8", "replace").strip()
        raise RuntimeError(f"this bench needs a clone of the repository with the commit {BEFORE} in it: {why}")
    folder.mkdir()
    subprocess.run(["tar", "x", "-C", str(folder)], input=packed.stdout, check=True)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, check=True, stdout=sys.stderr)
    return folder


def resident(options: Options, root: Path, name: str, number: int, flags: Sequence[str]) -> dict[str, int]:
    """Bytes of a daemon of the checkout ``root``, after one answer; the ``number``-th of this name."""
    folder = options.folder / name
    folder.mkdir(exist_ok=True)
    environ = os.environ | {"PYTHONPATH": str(root), "LLMAAS_DATA_DIR": str(folder / "data")}
    socket, log = folder / f"s{number}", folder / f"log{number}"
    command = [sys.executable, "-m", "llmaas", "serve", "--socket", str(socket), "--cells", str(_CELLS), *flags]
    with (
        log.open("wb") as file,
        subprocess.Popen([*command, "--threads", str(options.threads)], cwd=root, env=environ, stderr=file) as process,
    ):
        try:
            wait_for_socket(socket, process, log)
            subprocess.run([sys.executable, "-c", _ASK, str(socket)], cwd=root, env=environ, check=True)
            sleep(_SETTLE_S)
            return memory(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def measure(options: Options) -> Result:
    before = former(options.folder / "before-repository")
    data = {"LLMAAS_DATA_DIR": str(options.folder / "registered/data")}
    add = [sys.executable, "-m", "llmaas", "model", "add", "m", str(options.model)]
    subprocess.run(add, cwd=ROOT, env=os.environ | data, check=True, stdout=sys.stderr)
    path = ["--repack", "off", "--model", str(options.model)]  # a second copy of weights would be chosen for each anew
    ways = {"before": (before, path), "ours": (ROOT, path), "registered": (ROOT, ["--repack", "off", "--models", "m"])}
    found: dict[str, list[dict[str, int]]] = {name: [] for name in ways}
    for i in range(2 if options.quick else 5):
        for name, (root, flags) in ways.items():
            found[name].append(resident(options, root, name, i, flags))
        now = {name: f"{values[-1]['resident'] / 1e6:.1f} MB" for name, values in found.items()}
        say(f"round {i + 1}: {now}")
    figures: dict[str, Any] = {"before": BEFORE}
    for name, values in found.items():
        figures[f"{name}_mb"] = {
            part: summary([each[part] / 1e6 for each in values]) for part in ("resident", "anonymous")
        }
    bars = [Bar(f"{name}: MB beyond the version before", _more(found, name), MOST_MB, at_most=True) for name in _OURS]
    figures["more_mb"] = {name: sig(_more(found, name)) for name in _OURS}
    return Result(options.model.stem, figures, bars)


def _more(found: dict[str, list[dict[str, int]]], name: str) -> float:
    """MB of resident memory beyond the version before, the median over rounds."""
    pairs = zip(found[name], found["before"], strict=True)
    return median(ours["resident"] - before["resident"] for ours, before in pairs) / 1e6


if __name__ == "__main__":
    sys.exit(main("one_model", __doc__ or "", measure))
