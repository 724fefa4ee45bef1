"""The name that ps shows."""

from __future__ import annotations

import subprocess
import sys

SHOW = """
from pathlib import Path
from llmaas.host.process_name import set_process_name
set_process_name(NAME)
print(Path("/proc/self/comm").read_text().strip())
"""


def test_a_name_is_shown_as_far_as_it_fits() -> None:
    for name, shown in (("llmaas a", "llmaas a"), ("llmaas " + 20 * "x", "llmaas xxxxxxxx")):
        code = SHOW.replace("NAME", repr(name))
        found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert found.stdout.strip() == shown
