"""Orphans are adopted for as long as this process says, and no longer."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from llmaas.host.adoption import adopting, can_adopt

pytestmark = pytest.mark.skipif(not can_adopt(), reason="this system knows no adoption of processes")


def orphan() -> int:
    """The number of a process whose parent has ended."""
    return int(subprocess.run(["sh", "-c", "sleep 600 >&- 2>&- & echo $!"], stdout=subprocess.PIPE, check=True).stdout)


def test_an_orphan_is_adopted_within_the_block_only() -> None:
    with adopting():
        ours = orphan()
    other = orphan()
    os.kill(other, signal.SIGKILL)
    os.kill(ours, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(ours, 0)[1]) == -signal.SIGTERM
    with pytest.raises(ChildProcessError):
        os.waitpid(other, 0)
