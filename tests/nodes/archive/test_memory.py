"""An archive is written and read in the memory of a few blocks, however large it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

N_CHUNKS, CHUNK_BYTES = 512, 400_000
MOST_GROWN = 24 << 20

PROGRAM = f"""
import os, resource, sys
from pathlib import Path
from llmaas.cli.archives import read, written
from llmaas.nodes.archive.locks import SecretKey
from llmaas.nodes.archive.reader import ArchiveReader
from llmaas.nodes.archive.records import ChunkRecord, ContextHead
from llmaas.nodes.archive.writer import ArchiveWriter

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

path, secret, sealed = Path(sys.argv[1]), SecretKey.new(), sys.argv[2] == "sealed"
before = peak()
with written(path, secret.recipient if sealed else None) as sink:
    writer = ArchiveWriter(sink, 0.0)
    writer.begin(ContextHead(0, "x", "m", "v", 0), ())
    for i in range({N_CHUNKS}):
        writer.chunk(i, os.urandom({CHUNK_BYTES}))
    writer.close()
wrote = peak()
with read(path, secret if sealed else None) as source:
    reader = ArchiveReader(source)
    n = sum(isinstance(item, ChunkRecord) for item in reader)
assert n == {N_CHUNKS} and reader.complete, n
print(wrote - before, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clear", "sealed"])
def test_200_megabytes_take_a_few(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.archive"
    ran = subprocess.run([sys.executable, "-c", PROGRAM, str(path), kind], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert path.stat().st_size > N_CHUNKS * CHUNK_BYTES
    assert max(map(int, ran.stdout.split())) < MOST_GROWN, ran.stdout
