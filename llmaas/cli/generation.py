"""Flags for how an answer is sampled and scheduled, and the Sampling and Terms that they make.

Law: a flag that is not given leaves what the model's makers suggest, then CHAT, then the default of
``calls.Sampling``; that class says which values are allowed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmaas.errors import BadRequest

if TYPE_CHECKING:
    from llmaas.calls import Sampling, Terms

_HINT = "'llmaas chat --help' says what each option means."
CHAT = {"temperature": 0.7, "top_p": 0.95, "min_p": 0.05}
"""How a person is answered if neither they nor the model's file say how. Greedy answers of small models soon repeat one
sentence without end; calls of programs are greedy all the same, since programs want the same answer twice."""
_NUMBERS: dict[str, tuple[type, str, str]] = {
    "temperature": (float, "T", "0 is greedy: always the likeliest token"),
    "top_k": (int, "K", "keep the K likeliest tokens; 0 keeps all"),
    "top_p": (float, "P", "keep the likeliest tokens of total probability P"),
    "min_p": (float, "P", "keep tokens at least P times as likely as the likeliest"),
    "seed": (int, "N", "makes sampling repeatable"),
    "repeat_penalty": (float, "X", "divide the logits of recent tokens by X; 1 is off"),
    "presence_penalty": (float, "X", "take X from the logits of recent tokens"),
    "frequency_penalty": (float, "X", "take X from the logits of recent tokens for each time they occurred"),
    "penalty_last_n": (int, "N", "tokens that count as recent (default: 64)"),
}
_FILES = {
    "grammar": "the answer keeps to this grammar, in llama.cpp's GBNF, with a rule 'root'",
    "json_schema": "the answer is JSON that keeps to this schema",
}


def add_generation(parser: argparse.ArgumentParser) -> None:
    """The flags of ``sampling``, ``--stop`` and ``--on-full``."""
    group = parser.add_argument_group(
        "the answer",
        "how it is sampled, and where it ends; default: as the model's file suggests (general.sampling.*), else "
        + ", ".join(f"{name} {value}" for name, value in CHAT.items()),
    )
    for name, (kind, metavar, text) in _NUMBERS.items():
        group.add_argument(_flag(name), type=kind, metavar=metavar, help=text)
    for name, text in _FILES.items():
        group.add_argument(_flag(name), type=Path, metavar="FILE", help=text)
    group.add_argument(
        "--on-full", choices=("error", "shift"), default="error", help="shift: forget the oldest messages when full"
    )
    group.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end the answer before TEXT; may be given often"
    )


def add_terms(parser: argparse.ArgumentParser) -> None:
    """The flags of ``terms``."""
    group = parser.add_argument_group("scheduling", "when the request is served among others")
    group.add_argument(
        "--priority",
        metavar="P",
        default="normal",
        help="0 (most urgent) to 9, or interactive, normal, background; above normal only for urgent_apps",
    )
    group.add_argument("--deadline", type=float, metavar="S", help="give up if it is not done after S seconds")
    group.add_argument("--rate", type=float, metavar="X", help="generate X tokens a second at most")
    group.add_argument("--adapter", metavar="NAME", help="LoRA adapter from now on; '' for the bare model")


def terms(args: argparse.Namespace) -> Terms:
    """Raises BadRequest for values that are out of range."""
    from llmaas.calls import Priority, Terms  # --help does not wait for numpy

    names = {priority.name.lower(): int(priority) for priority in Priority}
    try:
        priority = names.get(args.priority.lower()) or int(args.priority)
        return Terms(priority, args.deadline, args.rate, args.adapter)
    except ValueError as error:
        wrong = f"--priority is {args.priority!r}; it must be 0 to 9, or one of {', '.join(names)}"
        raise BadRequest(wrong if "int()" in str(error) else str(error), hint=_HINT) from None


def sampling(args: argparse.Namespace, suggested: Mapping[str, Any]) -> Sampling:
    """``suggested`` is what the daemon's hello says of the model. Raises BadRequest for values that are out of range,
    and files that cannot be read."""
    from llmaas.calls import Sampling  # --help does not wait for numpy

    given = {name: getattr(args, name) for name in _NUMBERS}
    given |= {name: _read(getattr(args, name)) for name in _FILES}
    known = {name: value for name, value in suggested.items() if name in _NUMBERS}
    try:
        return Sampling(**{**CHAT, **known, **{name: value for name, value in given.items() if value is not None}})
    except ValueError as error:
        raise BadRequest(str(error), hint=_HINT) from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"cannot read {path}: {error}", hint=_HINT) from None
