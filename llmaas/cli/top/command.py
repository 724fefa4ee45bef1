"""``llmaas top``: what the daemon does, live, with keys to cancel a call or to change its priority.

Law: changes nothing unless a key asks for it. The terminal is as before when it ends, whatever ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from llmaas.cli.options import add_client, connected, loaded, seconds
from llmaas.cli.served_states import served_models
from llmaas.cli.top.sample import Sample
from llmaas.cli.top.view import Screen, picture
from llmaas.clock import RealClock
from llmaas.errors import LlmaasError, UnknownRequest

if TYPE_CHECKING:
    from llmaas.api.client import Client

_EPILOG = """\
examples:
  llmaas top
  llmaas top --once          one picture, and the end; what a pipe gets, too

keys: q quits, s sorts the contexts by something else, up and down choose a call, c cancels it, + and - make it more
and less urgent, space lets the picture stand still.
"""
_UP, _DOWN = "\x1b[A", "\x1b[B"
_KEY = re.compile(r"\x1b\[.|.", re.DOTALL)
"""Several keys may come at once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_client(parser)
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.add_argument(
        "--every",
        metavar="SECONDS",
        type=seconds(0.1, 3600),
        default=1.0,
        help="how often it is drawn (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    console, clock, found = Console(), RealClock(), loaded(args)
    with connected(args, admin=True) as client:
        sample, screen = Sample(), Screen()
        sample.read(client, clock.now)
        sample.served_as = str(client.server.get("served_as", ""))
        sample.models = served_models(found) if sample.served_as else []
        several = bool(sample.models)
        if args.once or not (sys.stdin.isatty() and console.is_terminal):
            console.print(picture(sample, screen, clock.wall(), console.height if console.is_terminal else 50, False))
            return 0
        with _keys() as key, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(picture(sample, screen, clock.wall(), console.height), refresh=True)
                pressed = key(args.every)
                if pressed in ("q", "\x03", "\x04"):
                    return 0
                screen.said = ""
                _obey(pressed, client, sample, screen)
                if not screen.still:
                    sample.read(client, clock.now)
                    sample.models = served_models(found) if several else []


def _obey(key: str, client: Client, sample: Sample, screen: Screen) -> None:
    """Do what a key asks for; "" is none."""
    match key:
        case "s":
            screen.next_sort()
        case " ":
            screen.still = not screen.still
        case "j" | "k" | "\x1b[A" | "\x1b[B":
            screen.choose(sample.running, 1 if key in ("j", _DOWN) else -1)
        case "c" | "+" | "-":
            call = next((call for call in sample.running if call.call == screen.chosen), None)
            if call is None:
                screen.said = "no call is chosen: up and down choose one"
                return
            try:
                if key == "c":
                    client.cancel_call(call.call, everyone=True)
                    screen.said = f"call {call.call} is cancelled"
                else:  # 0 is the most urgent
                    priority = min(9, max(0, call.priority + (1 if key == "-" else -1)))
                    client.prioritize_call(call.call, priority, everyone=True)
                    screen.said = f"call {call.call} has priority {priority}"
            except UnknownRequest:
                screen.said = f"call {call.call} has ended"
            except LlmaasError as error:
                screen.said = error.message


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that returns the next key, or "" when there is none for so many seconds."""
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    waiting: list[str] = []

    def key(seconds: float) -> str:
        if not waiting and select.select([file], [], [], seconds)[0]:
            waiting.extend(_KEY.findall(os.read(file, 64).decode("utf-8", "replace")) or ["q"])
        return waiting.pop(0) if waiting else ""

    try:
        tty.setcbreak(file)
        yield key
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
