"""The memory of a slot: nothing that leaves it reaches other memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmaas.slots.layout import SlotLayout
from llmaas.slots.memory import SlotMemory, make_slot

LOOK = """
import ctypes, os, sys
from llmaas.slots.layout import SlotLayout
from llmaas.slots.memory import make_slot

layout = SlotLayout(16 << 10)
held = [make_slot(layout, i, os.getuid()) for i in range(3)]
memory = held[1][1]
print(ctypes.string_at(memory.base, memory.nbytes)[:8], flush=True)
ctypes.string_at(memory.base + (-1 if sys.argv[1] == "before" else memory.nbytes), 1)
print("read")
"""


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_read_that_leaves_a_slot_ends_the_process_and_reaches_no_other_slot(where: str) -> None:
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", LOOK, where], cwd=root, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (-signal.SIGSEGV, "b'llmaasSL'\n")


def test_what_was_mapped_is_let_go_of_with_its_guards() -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")

    fd, first = make_slot(SlotLayout(4096), 1, os.getuid())
    before = mapped()
    for _ in range(4000):
        SlotMemory(fd, first.nbytes).close()
    assert mapped() - before < 4000 * os.sysconf("SC_PAGESIZE"), "of each, less than one page is left"
    first.close()
    os.close(fd)
