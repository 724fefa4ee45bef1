"""The guard of mapped files where pages are of 16 KB, as on some ARM kernels: by emulation of one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.lib.codec_calls import NEON
from tests.support.drivers import ROOT

PROGRAM = r"""
#include "_map_guard.c"
#include <fcntl.h>
#include <stdio.h>

int main(int argc, char **argv) {
    const long size = sysconf(_SC_PAGESIZE);
    const int file = open(argv[argc - 1], O_RDWR | O_CREAT, 0600);
    if (ftruncate(file, 3 * size)) return 2;
    const volatile char *map = mmap(NULL, 3 * size, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED || guard_add((uintptr_t)map, (uintptr_t)map + 3 * size) != 0) return 3;
    long sum = map[5];
    if (ftruncate(file, size)) return 4;
    for (long i = 0; i < size; i++) sum += map[size + i];
    printf("%ld %lld %ld", size, (long long)guard_faults(), sum);
    return 0;
}
"""


@pytest.mark.skipif(NEON.missing() is not None, reason=str(NEON.missing()))
@pytest.mark.parametrize("size", [4096, 16384, 65536])
def test_a_missing_page_is_replaced_once_and_as_a_whole(tmp_path: Path, size: int) -> None:
    source, program = tmp_path / "guard.c", tmp_path / "guard"
    source.write_text(PROGRAM)
    engine = ROOT / "llmaas" / "engine" / "llama"
    compiler = [NEON.compiler, "-std=c11", "-O2", "-static", f"-I{engine}", "-o", program, source]
    subprocess.run(compiler, check=True, capture_output=True)
    emulator = [NEON.emulator[0], "-p", str(size), program, tmp_path / "file"]
    assert subprocess.run(emulator, check=True, capture_output=True, text=True).stdout == f"{size} 1 0"
