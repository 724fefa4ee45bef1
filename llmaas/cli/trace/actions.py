"""What ``llmaas trace`` does, one function for each action.

Law: results go to stdout or to the file named; a trace begins with a comment that says how it was made.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmaas.cli.out import print_json, print_note, printable, shortened, table
from llmaas.errors import BadRequest, ConfigError
from llmaas.traces import azure, chats, conversations, mooncake, phone, unlocks
from llmaas.traces.call import TraceCall
from llmaas.traces.files import load, save, text_of
from llmaas.traces.generators import generate
from llmaas.traces.summary import summary

SOURCES = {
    "azure": "Azure LLM inference trace 2023 (CSV): its bursts",
    "mooncake": "Mooncake trace (JSON lines): shared prefixes",
    "unlocks": "screen events with time and screen_status (CSV, as niimpy's): a phone with these unlocks",
    "chats": "chats of two people with times (JSON lines, as chitchat-dataset's): gaps between turns",
    "conversations": "conversations with text (JSON lines with app, id, turns)",
}
"""What ``llmaas trace import`` takes."""


def gen(args: argparse.Namespace) -> int:
    calls = generate(args.pattern, contexts=args.contexts, limit=args.limit, seed=args.seed, hours=args.hours)
    about = f"llmaas trace gen {args.pattern} --contexts {args.contexts} --limit {args.limit} --hours {args.hours:g}"
    return _put(args.output, calls, [f"{about} --seed {args.seed}"])


def show(args: argparse.Namespace) -> int:
    calls = load(args.trace)[: args.first]
    rows = [
        [
            f"{call.t:.1f}",
            call.app,
            call.context,
            call.prompt,
            call.generate,
            shortened(" ".join((call.text or "").split()), 60),
        ]
        for call in calls
    ]
    print(table(["SECOND", "APP", "CONTEXT", "PROMPT", "GENERATE", "TEXT"], rows, sys.stdout))
    return 0


def stats(args: argparse.Namespace) -> int:
    found = summary(load(args.trace))
    if args.json:
        print_json(found)
    else:
        rows = [[name, f"{value:.3g}" if isinstance(value, float) else str(value)] for name, value in found.items()]
        print(table(["FIGURE", "VALUE"], rows, sys.stdout))
    return 0


def plot(args: argparse.Namespace) -> int:
    from llmaas.traces.picture import draw

    calls = load(args.trace)
    if not calls:
        raise BadRequest(f"{args.trace} has no calls to draw")
    try:
        draw(args.output, calls, f"{printable(args.trace.name)}: {len(calls)} calls")
    except OSError as error:
        raise _cannot_write(args.output, error) from None
    return 0


def record(args: argparse.Namespace) -> int:
    from llmaas.service import recorder  # the planner's events, which no other action needs
    from llmaas.traces.recorded import from_recording

    key = args.key.encode() if args.key else secrets.token_bytes(32)
    try:
        _, events = recorder.read(args.recording)
    except OSError as error:
        raise BadRequest(f"cannot read {args.recording}: {error.strerror}") from error
    try:
        calls = from_recording(events, key)
    except (IndexError, KeyError, TypeError, ValueError) as error:  # what damaged bytes may look like
        raise BadRequest(f"{args.recording} is damaged: {type(error).__name__}: {error}") from error
    return _put(args.output, calls, ["llmaas trace record: times and lengths of a recording; names are hashes"])


def take(args: argparse.Namespace) -> int:
    with text_of(args.file) as file:
        calls = list(_imported(args, file))
    if not calls:
        raise BadRequest(f"{args.file} has no call that fits in {args.limit} tokens")
    return _put(args.output, calls, [f"llmaas trace import {args.source} {args.file.name}"])


def _imported(args: argparse.Namespace, lines: Iterable[str]) -> Iterator[TraceCall]:
    sizes = {"limit": args.limit, "seed": args.seed}
    match args.source:
        case "azure":
            return azure.read_azure(lines, pattern=args.pattern, contexts=args.contexts, **sizes)
        case "mooncake":
            return mooncake.read_mooncake(lines, limit=args.limit, scale=args.scale)
        case "unlocks":
            return phone.make(args.seed, limit=args.limit, hours=float("inf"), unlocks=unlocks.read_unlocks(lines))
        case "chats":
            return iter(chats.read_chats(lines, chats=args.contexts, limit=args.limit))
        case _:
            found = conversations.read_conversations(lines)[: args.contexts]
            return conversations.make(found, args.pattern, args.calls, **sizes)


def _put(output: Path | None, calls: Iterable[TraceCall], about: list[str]) -> int:
    if output is None:
        for line in about:
            print(f"# {line}")
        for call in calls:
            print(call.line())
        return 0
    try:
        count = save(output, calls, about)
    except OSError as error:
        raise _cannot_write(output, error) from None
    if sys.stderr.isatty():
        print_note(f"{count} calls in {output}")
    return 0


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} cannot be written: {error.strerror}")
