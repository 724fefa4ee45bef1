"""System calls by their numbers, where the C library has no function for them.

Law: a call that could end the process is not made. Android's filter for apps (bionic, libc/SECCOMP_*.TXT) ends a
process by SIGSYS for a call that its version does not list; and a 32-bit process has other numbers than the 64-bit
kernel that names the machine.
"""

from __future__ import annotations

import platform
import struct
import sys
from collections.abc import Mapping

_WIDE = ("x86_64", "aarch64", "riscv64")


def call_number(numbers: Mapping[str, int]) -> int | None:
    """The number for this process, of those by machine; None where the call must not be made, or is not known."""
    machine = platform.machine()
    narrow = struct.calcsize("P") < 8
    if sys.platform != "linux" or on_android() or narrow == (machine in _WIDE):
        return None
    return numbers.get(machine)


def on_android() -> bool:
    """Whether this is a Python for Android, that of Termux among them."""
    return hasattr(sys, "getandroidapilevel")
