"""How many files and sockets this process may have open.

Law: it only raises the limit, as far as the system allows without rights, and never fails.
"""

from __future__ import annotations

import contextlib
import resource

MOST = 4096
"""More than a daemon ever needs. Rejected: the hard limit itself, which may be a thousand million. What goes through
all numbers, as some libraries do before they start a program, would take minutes.
"""


def raise_file_limit(most: int = MOST) -> int:
    """Raise the limit to ``most``, or as far as it goes, and return what holds now; one above ``most`` stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if soft == resource.RLIM_INFINITY else soft
