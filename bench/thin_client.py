"""What an app pays for the client alone: llmaas-client, installed by pip into an empty environment.

* installed: bytes of what pip put there, bytecode included, against 5 MB;
* import: ``from llmaas import Client`` in a fresh process, and a bare interpreter's start for comparison;
* example: the README's Python, run with it against a real daemon.

pip fetches msgpack from the index that it is configured for.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.daemon import daemon
from bench.lib.machine import ROOT
from bench.lib.stats import sig, summary

_IMPORT = "from time import perf_counter as t; a = t(); from llmaas import {}; print((t() - a) * 1e3)"
_PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def installed(folder: Path) -> tuple[Path, Path]:
    """An environment with the client's wheel and what it asks for: its interpreter, and where its packages are."""
    subprocess.run([*_PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT / "client")], check=True)
    (wheel,) = folder.glob("llmaas_client-*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([*_PIP, "--python", str(python), "install", str(wheel)], check=True)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    return python, packages


def import_times(python: Path, name: str, n: int) -> list[float]:
    """Milliseconds, each of a process of its own."""
    command = [str(python), "-I", "-c", _IMPORT.format(name)]  # -I: not the checkout that PYTHONPATH may name
    return [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(n)]


def start_ms(python: Path, n: int) -> float:
    """Of an interpreter that does nothing."""
    times = []
    for _ in range(n):
        begin = perf_counter()
        subprocess.run([str(python), "-I", "-c", ""], check=True)
        times.append((perf_counter() - begin) * 1e3)
    return statistics.median(times)


def run_example(options: Options, python: Path) -> str:
    """What the README's example prints."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    with daemon(options, "served") as (socket, _):
        environ = {"LLMAAS_SOCKET": str(socket)}
        done = subprocess.run(
            [str(python), "-I", "-c", code],
            env=environ,
            cwd=options.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
    if done.returncode:
        raise RuntimeError(f"the README's example failed:\n{done.stderr}")
    return done.stdout


def measure(options: Options) -> Result:
    python, packages = installed(options.folder)
    sizes = {path.name: _bytes_of(path) for path in sorted(packages.iterdir())}
    n = 11 if options.quick else 41
    times = {name: import_times(python, name, n) for name in ("Client", "AsyncClient")}
    example = run_example(options, python)
    figures: dict[str, Any] = {
        "installed_bytes": sizes,
        "import_ms": {name: summary(values) for name, values in times.items()},
        "start_ms": sig(start_ms(python, n)),
        "example": example,
    }
    mb, ms = sum(sizes.values()) / 1e6, statistics.median(times["Client"])
    say(f"installed {mb:.2f} MB; import {ms:.1f} ms; the README's example said {example!r}")
    bars = [Bar("MB installed", mb, 5.0, at_most=True), Bar("ms to import Client", ms, 60.0, at_most=True)]
    return Result(options.model.name, figures, bars)


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    sys.exit(main("thin_client", __doc__, measure))
