"""What kind of machine this is: a phone, a Raspberry Pi, a Jetson, or another.

Law: it reads variables and small files that say so, and changes nothing. What nothing says is OTHER.

It reads the model that the device tree names (Devicetree Specification, "model" of the root node), which firmware gives
on boards; NVIDIA's release file of Jetson Linux; Android's programs; and what the app Termux sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from llmaas.frozen import frozen

ROOT = Path("/")
_MODEL = ("proc/device-tree/model", "sys/firmware/devicetree/base/model")
"""The second is there where /proc is hidden."""


class BoardKind(Enum):
    PHONE = "an Android device"
    PI = "a Raspberry Pi"
    JETSON = "an NVIDIA Jetson"
    OTHER = "no phone or board that is known"


@frozen
class Board:
    """``name``: what it calls itself, such as "Raspberry Pi 5 Model B Rev 1.0"; "" if it does not."""

    kind: BoardKind = BoardKind.OTHER
    name: str = ""


def find_board(environ: Mapping[str, str], root: Path = ROOT) -> Board:
    name = next((text for path in _MODEL if (text := _text(root / path))), "")
    if is_termux(environ) or _is_android(root):
        return Board(BoardKind.PHONE, name)
    if "Jetson" in name or _exists(root / "etc/nv_tegra_release"):
        return Board(BoardKind.JETSON, name)
    return Board(BoardKind.PI if "Raspberry Pi" in name else BoardKind.OTHER, name)


def is_termux(environ: Mapping[str, str]) -> bool:
    """Whether this process is one of the app Termux. (Forks of it have other package names, and the same variable.)"""
    return "TERMUX_VERSION" in environ or "/com.termux/" in environ.get("PREFIX", "")


def _is_android(root: Path) -> bool:
    return any(_exists(root / "system/bin" / name) for name in ("app_process64", "app_process"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that this user may not look into
        return False


def _text(path: Path) -> str:
    """A property of the device tree: text that ends with a NUL. "" if it cannot be read."""
    try:
        text = path.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    except OSError:
        return ""
    return " ".join(text.split())
