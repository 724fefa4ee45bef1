"""The C library with nonsense in every word of a slot, under the address sanitizer: both sides are in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fuzz_rings.c")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    built = tmp_path_factory.mktemp("fuzz") / "fuzz"
    sanitized = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread"]
    command = [compiler, "-std=gnu11", "-O1", "-g", *sanitized, str(SOURCE), "-o", str(built)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in found.stderr:
        pytest.skip("the compiler has no address sanitizer")
    assert found.returncode == 0, found.stderr
    return built


def fuzz(program: Path, states: int, seed: int) -> None:
    found = subprocess.run([program, str(states), str(seed)], capture_output=True, text=True, check=False, timeout=900)
    assert (found.returncode, found.stdout) == (0, f"{states} states\n"), found.stderr


def test_nonsense_in_a_slot_reads_and_writes_nothing_outside_of_it(program: Path) -> None:
    fuzz(program, 10_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_states_of_a_slot(program: Path) -> None:
    fuzz(program, 1_000_000, seed=2)
