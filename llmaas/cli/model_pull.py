"""Getting a model's file: from the web or from Hugging Face, with a bar that shows how far it is.

Law: the bar is on stderr, and only on a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmaas.cli.out import print_note
from llmaas.errors import ConfigError
from llmaas.model_files.download import Progress, download
from llmaas.model_files.hub import load_from_hub
from llmaas.model_files.source import HubFile, WebFile


def file_from(source: HubFile | WebFile, folder: Path, sha256: str) -> tuple[Path, str]:
    """Load a file into ``folder``; returns its path and its SHA-256, "" if it was not computed. One that is there
    already, with the checksum that is wanted, is not loaded again. Raises LlmaasError."""
    if isinstance(source, HubFile):
        if sha256:
            raise ConfigError("--sha256 is for https:// addresses", hint="Of hf: files the package checks what came.")
        return load_from_hub(source, folder), ""
    target = folder / source.file_name
    with _bar(source.file_name) as progress:
        found = download(source.url, target, sha256=sha256, progress=progress)
    if not sha256:
        print_note(f"the checksum was not compared with any: SHA-256 {found.sha256}")
    return found.file, found.sha256


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
