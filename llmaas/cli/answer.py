"""One answer as ``llmaas chat`` shows it: the text as it comes, and a line of figures.

Law: a script finds the answer and nothing else on stdout. Ctrl-C ends an answer, and what was streamed stays part of
the context.
"""

from __future__ import annotations

import argparse
import enum
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmaas.cli.generation import sampling, terms
from llmaas.cli.loading_line import LINE_AGAIN
from llmaas.cli.out import dim, print_note, printable
from llmaas.errors import Cancelled, ShuttingDown

if TYPE_CHECKING:
    from llmaas.api.client import Client
    from llmaas.calls import Done, Piece


class Ended(enum.Enum):
    """How an answer ended that did not fail."""

    WHOLE = "whole"
    CANCELLED = "cancelled"
    """By the user."""


@dataclass(slots=True)
class Shown:
    """What the user has seen of an answer, also if it breaks off."""

    text: str = ""
    n_tokens: int = 0


def show_answer(
    client: Client,
    context: str,
    messages: Sequence[str],
    args: argparse.Namespace,
    max_tokens: int,
    shown: Shown,
    *,
    idempotency_key: str | None = None,
) -> Ended:
    """Stream the answer to the user's ``messages`` to stdout; without any, the answer in the context goes on.

    Raises LlmaasError; ShuttingDown also if it was the daemon that cancelled the call, to stop.
    """
    stream = client.generate(
        context,
        [{"role": "user", "content": text} for text in messages],
        max_tokens=max_tokens,
        sampling=sampling(args, client.server.get("sampling") or {}),
        stop=args.stop,
        on_full=args.on_full,
        terms=terms(args),
        idempotency_key=idempotency_key,
        progress=sys.stderr.isatty(),
    )
    cancelled = False
    while True:
        try:
            for piece in without_progress(stream):
                print(printable(piece.text, keep="\n\t"), end="", flush=True)
                shown.text += piece.text
                shown.n_tokens += len(piece.tokens)
            print()
            break
        except Cancelled:
            if not cancelled:
                raise ShuttingDown("the daemon ended the answer") from None
            print()
            print_note("cancelled; what was said so far is kept")
            return Ended.CANCELLED
        except KeyboardInterrupt:
            if cancelled:
                raise
            cancelled = True
            stream.cancel()
    if args.status or (args.status is None and sys.stderr.isatty()):
        print(dim(status_line(stream.done), sys.stderr), file=sys.stderr)
    return Ended.WHOLE


def without_progress(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces of the answer. What it waits for, and how far reading the prompt has come, is a line on stderr, which
    goes before the answer begins."""
    reading = False
    try:
        for piece in pieces:
            if not piece.of_answer:
                reading = True
                if text := _what_goes_before(piece):
                    print(f"{LINE_AGAIN}{dim(text, sys.stderr)}", end="", file=sys.stderr, flush=True)
                continue
            if reading:
                reading = False
                print(LINE_AGAIN, end="", file=sys.stderr, flush=True)
            yield piece
    finally:
        if reading:
            print(LINE_AGAIN, end="", file=sys.stderr, flush=True)


def _what_goes_before(piece: Piece) -> str:
    """What a piece says that comes before the answer; "" of loading, which the client's LoadingLine shows."""
    if (progress := piece.progress) is not None:
        return f"reading: {progress.done} of {progress.total} tokens"
    if (queued := piece.queued) is None:
        return ""
    others = {0: "next in line", 1: "1 other goes before"}.get(queued.ahead, f"{queued.ahead} others go before")
    return f"waiting: {others}" + (
        "" if queued.expected_s is None else f", about {math.ceil(queued.expected_s)} s more"
    )


def status_line(done: Done) -> str:
    """What an answer cost: tokens, where those of the context were, switch, first token, speed.

    A call that was paused was switched in more than once, and its tokens count each time: the line says so, since they
    are then more than the context has.
    """
    switch = done.switch
    tiers = {"cells": switch.cells, "pool": switch.pool, "disk": switch.disk, "recomputed": switch.recomputed}
    came = ", ".join(f"{tier} {n}" for tier, n in tiers.items() if n) or "nothing to bring back"
    if done.n_paused:
        often = "once" if done.n_paused == 1 else f"{done.n_paused} times"
        came += f" in {done.n_paused + 1} switches, since it was paused {often}"
    return (
        f"[{done.n_tokens} tokens ({done.n_prompt} new, {done.n_generated} answered) · "
        f"switch {switch.switch_ms:.1f} ms ({came}) · first token {done.ttft_ms:.0f} ms · {done.decode_tps:.1f} tok/s]"
    )
