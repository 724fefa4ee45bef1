"""What a check of the doctor yields.

Law: values only.
"""

from __future__ import annotations

from typing import Literal

from llmaas.frozen import frozen

Level = Literal["ok", "warn", "fail"]


@frozen
class Finding:
    """One line of the doctor's report: the part that it is about, and what to do where ``hint`` is not empty."""

    about: str
    level: Level
    text: str
    hint: str = ""
