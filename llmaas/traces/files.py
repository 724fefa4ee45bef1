"""Files of traces: plain, or compressed by gzip (``.gz``) or zstd (``.zst``).

Law: what a file's name ends with says how it is compressed. zstd needs the package zstandard, and nothing else does.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from llmaas.errors import BadRequest
from llmaas.traces.call import TraceCall, read_trace

_LEVEL = 12
"""Of zstd: traces are written once."""


@contextmanager
def text_of(path: Path) -> Iterator[TextIO]:
    """The text of a file, decompressed. Raises BadRequest if it cannot be read, then or later in the block."""
    try:
        with _opened(path, "r") as file:
            yield file
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "zstandard":  # its errors have no base but Exception
            raise
        raise _unreadable(path, error) from error


def load(path: Path) -> list[TraceCall]:
    """All calls of a trace, which must be in order of time. Raises BadRequest."""
    with text_of(path) as file:
        calls = list(read_trace(file))
    for i in range(1, len(calls)):
        if calls[i].t < calls[i - 1].t:
            raise BadRequest(
                f"{path}: call {i + 1} comes at {calls[i].t:g} s, before the call above it", hint="Sort it by t."
            )
    return calls


def save(path: Path, calls: Iterable[TraceCall], about: Iterable[str] = ()) -> int:
    """Write a trace, with lines ``about`` it as comments above; how many calls it has. Raises BadRequest, OSError."""
    count = 0
    with _opened(path, "w") as file:
        for line in about:
            file.write(f"# {line}\n")
        for call in calls:
            file.write(call.line() + "\n")
            count += 1
    return count


def _opened(path: Path, mode: str) -> Any:
    match path.suffix:
        case ".gz":
            return gzip.open(path, f"{mode}t", encoding="utf-8")
        case ".zst":
            return _zstd(path, mode)
        case _:
            return path.open(mode, encoding="utf-8")


def _zstd(path: Path, mode: str) -> io.TextIOWrapper:
    try:
        import zstandard
    except ImportError:
        raise BadRequest(f"{path} is compressed by zstd", hint="pip install 'llmaas[traces]', or use .gz.") from None
    stream: Any
    if mode == "w":
        stream = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(path.open("wb"))
    else:
        stream = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True)
    return io.TextIOWrapper(stream, encoding="utf-8")


def _unreadable(path: Path, error: Exception) -> BadRequest:
    return BadRequest(f"cannot read {path}: {error}", hint="Give a file of JSON lines (docs/traces.md).")
