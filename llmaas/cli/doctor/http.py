"""The doctor's look at HTTP: whether it can be served here, and whether it is.

Law: connects to the Unix socket, and sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from llmaas.cli.doctor.finding import Finding
from llmaas.cli.http_process import missing_packages

_INSTALL = "pip install 'llmaas[http]', or scripts/setup in a checkout."


def check_http(address: str | None, place: Path, answers: bool) -> Iterator[Finding]:
    """``address`` is the setting ``http``, ``place`` the Unix socket for HTTP; ``answers``: whether it is served."""
    if lacking := missing_packages():
        text = f"HTTP cannot be served: not installed are {', '.join(lacking)}"
        if address is None:
            yield Finding("http", "ok", f"{text} (the setting http is none)", _INSTALL)
        else:
            yield Finding("http", "fail", text, _INSTALL)
        return
    if answers:
        yield Finding("http", "ok", f"HTTP is served on {place}")
    elif address is None:
        yield Finding("http", "ok", "HTTP is off", "'llmaas serve --http 127.0.0.1:11434' turns it on.")
    else:
        yield Finding("http", "ok", f"HTTP is on ({address}) once a daemon runs")
    if find_spec("httptools") is None:
        yield Finding("http", "ok", "httptools is not installed: HTTP is parsed in Python, more slowly")
