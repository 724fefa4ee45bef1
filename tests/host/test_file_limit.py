"""The limit of open files, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
soft, hard, most = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from llmaas.host.file_limit import raise_file_limit
print(raise_file_limit(most), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "most", "now"),
    [(100, 200, 150, 150), (100, 200, 500, 200), (200, 200, 500, 200), (180, 200, 150, 180)],
)
def test_the_limit_is_raised_as_far_as_it_goes_and_is_wanted(soft: int, hard: int, most: int, now: int) -> None:
    args = [sys.executable, "-c", PROGRAM, str(soft), str(hard), str(most)]
    found = subprocess.run(args, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == [str(now), str(now), str(hard)]
