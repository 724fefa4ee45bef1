"""Quotas of apps on the command line: ``contexts=10 disk_bytes=64M``, and how they are shown.

Law: pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from llmaas.cli.out import human_bytes
from llmaas.config.kinds import Kind, number, show_bytes, size, whole
from llmaas.errors import BadRequest
from llmaas.records import AppInfo, AppQuota

QUOTAS: dict[str, tuple[Kind, str]] = {
    "contexts": (whole(0, 1 << 40), "contexts that the app may keep"),
    "tokens": (whole(0, 1 << 50), "tokens in all of them"),
    "disk_bytes": (size(0), "disk for its chunks"),
    "requests": (whole(0, 65536), "requests that may wait or run"),
    "rate": (number(0.01, 1e6), "tokens per second that it may generate"),
    "priority": (whole(0, 9), "the most urgent priority of its requests"),
}
HELP = "KEY is one of " + "; ".join(f"{name}: {what}" for name, (_, what) in QUOTAS.items())


def changed(quota: AppQuota, words: Iterable[str]) -> AppQuota:
    """The quota with what words such as ``contexts=10`` say; ``contexts=none``: as for every app. Raises BadRequest.

    >>> changed(AppQuota(), ["contexts=10", "disk_bytes=1K"])
    AppQuota(contexts=10, tokens=None, disk_bytes=1024, requests=None, rate=None, priority=None)
    """
    for word in words:
        name, equals, raw = word.partition("=")
        if name not in QUOTAS or not equals:
            raise BadRequest(f"{word!r} is no quota; KEY=VALUE is wanted", hint=f"{HELP}.")
        kind = QUOTAS[name][0]
        try:
            value = None if raw.strip().lower() == "none" else kind.read(raw, Path())
        except ValueError:
            raise BadRequest(f"{name} is {raw!r}; it must be {kind.allowed}, or none", hint=f"{HELP}.") from None
        quota = replace(quota, **{name: value})
    return quota


def shown(info: AppInfo) -> list[str]:
    """For each quota what the app has and may have, as a table shows it.

    >>> from llmaas.records import AppId, AppUse
    >>> shown(AppInfo(AppId("1/a"), None, AppQuota(contexts=10, priority=3), AppUse(2, 900, 2048, 0)))
    ['2/10', '900', '2.0 KiB', '0', '', '3']
    """
    used, found = asdict(info.used), []
    for name, most in asdict(info.quota).items():
        as_text, limit = (human_bytes, show_bytes) if name == "disk_bytes" else (str, "{:g}".format)
        has = as_text(used[name]) if name in used else ""
        may = "" if most is None else limit(most)
        found.append(f"{has}/{may}" if has and may else has + may)
    return found
