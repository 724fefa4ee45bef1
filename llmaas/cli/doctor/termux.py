"""The doctor's look at a phone: what Android and Termux lack or do that other systems do not, and what to do about it.

Law: it reads variables, small files and Android's properties, and changes nothing. What an app may not know it says.

Android ends programs of an app in the background in three ways: battery optimisation, the freeze of doze, and since
Android 12 a limit on the child processes of all apps together ("phantom processes", 32). The flag that lifts the limit
is there since 12L; it is in the developer options since 14.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from llmaas.cli.doctor.finding import Finding
from llmaas.config.boards import is_termux
from llmaas.config.settings import Config
from llmaas.host.memory import meminfo, stall_seconds
from llmaas.socket_place import socket_places

ROOT = Path("/")
PHANTOM_FLAG = "persist.sys.fflag.override.settings_enable_monitor_phantom_procs"
_ANDROID_12, _ANDROID_12L, _ANDROID_14 = 31, 32, 34
_SHARED = ("sdcard", "storage", "mnt/sdcard", "data/media")
"""Folders of the storage that all apps share."""

Property = Callable[[str], str]
"""The value of a property of Android; "" if it has none."""


def check_termux(
    config: Config, environ: Mapping[str, str], root: Path = ROOT, get: Property | None = None
) -> Iterator[Finding]:
    """Nothing where this is not Termux. ``get``: in place of Android's getprop."""
    if not is_termux(environ):
        return
    get = get or android_property
    release, level = get("ro.build.version.release"), _number(get("ro.build.version.sdk"))
    yield Finding("termux", "ok", f"Termux {environ.get('TERMUX_VERSION', '')} on Android {release or '?'}")
    yield from _places(config, environ, root)
    yield from _kernel(root)
    yield from _phantoms(level, get(PHANTOM_FLAG))
    yield from _awake(environ)


def android_property(name: str) -> str:
    command = shutil.which("getprop", path=os.pathsep.join([os.environ.get("PATH", ""), "/system/bin"]))
    if command is None:
        return ""
    try:
        done = subprocess.run([command, name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _places(config: Config, environ: Mapping[str, str], root: Path) -> Iterator[Finding]:
    """Where the socket and the data are: there is no /run, no /tmp, and shared storage has no owners."""
    if not os.access(root / "tmp", os.W_OK | os.X_OK) and not environ.get("TMPDIR"):
        text = f"there is no /tmp and TMPDIR is not set: the socket would be {socket_places(environ, root)[0]}"
        yield Finding("termux", "fail", text, "export TMPDIR=$PREFIX/tmp, for the daemon and for its clients.")
    for what, path in (("data_dir", config.data_dir), ("socket", config.socket)):
        places = (path, Path(os.path.realpath(path)))  # ~/storage holds links
        if any(place.is_relative_to(root / folder) for place in places for folder in _SHARED):
            text = f"{what} is {path}, on storage that all apps share: every app may read it, and it has no sockets"
            yield Finding("termux", "fail", text, f"Set {what} to a path below {environ.get('HOME', '~')}.")


def _kernel(root: Path) -> Iterator[Finding]:
    """What Android's kernel does not tell an app."""
    if not meminfo(root):
        yield Finding("termux", "warn", "/proc/meminfo cannot be read: a shortage of memory is not seen")
    elif stall_seconds(root) is None:
        yield Finding("termux", "ok", "stalls on memory are not told (no PSI): free memory is looked at instead")


def _phantoms(level: int | None, flag: str) -> Iterator[Finding]:
    if level is None or level < _ANDROID_12:
        return
    if flag == "false":
        yield Finding("termux", "ok", "Android's limit on child processes is off")
        return
    text = 'Android ends programs of Termux when all apps have more than 32 child processes ("phantom processes")'
    if level >= _ANDROID_14:
        hint = "Turn on 'Disable child process restrictions' in the developer options."
    elif level >= _ANDROID_12L:
        hint = "From a computer: adb shell settings put global settings_enable_monitor_phantom_procs false"
    else:
        hint = (
            "From a computer: adb shell device_config set_sync_disabled_for_tests persistent; "
            "adb shell device_config put activity_manager max_phantom_processes 2147483647"
        )
    yield Finding("termux", "warn", text, hint)


def _awake(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the phone stays awake while the daemon computes, and what an app cannot find out."""
    prefix, home = Path(environ.get("PREFIX", "")), Path(environ.get("HOME", ""))
    service = prefix / "var/service/llmaas-wake-lock"
    if not (service / "run").is_file() or (service / "down").exists():
        text = "nothing keeps the phone awake while the daemon computes: it stands still when the screen goes off"
        yield Finding("termux", "warn", text, "Run android_bridge/termux/install.sh, or termux-wake-lock.")
    else:
        yield Finding("termux", "ok", "the phone stays awake while the daemon computes (llmaas-wake-lock)")
    if not (home / ".termux/boot/llmaas").is_file():
        yield Finding(
            "termux", "ok", "not started at boot", "install.sh --at-boot does that, with the app Termux:Boot."
        )
    text = "Android does not tell an app whether its battery use is optimised"
    hint = "Settings, Apps, Termux, Battery: Unrestricted. Else Android ends it in the background."
    yield Finding("termux", "ok", text, hint)
