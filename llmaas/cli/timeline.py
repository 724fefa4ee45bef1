"""``llmaas timeline``: the last calls as a trace that Chrome's and Perfetto's viewers show.

Law: shows what the daemon reports, and reads no text of any conversation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llmaas.cli.options import add_client, connected
from llmaas.cli.out import print_note
from llmaas.errors import ConfigError
from llmaas.records import RequestInfo

_EPILOG = """\
examples:
  llmaas timeline > trace.json      the last calls of every app
  llmaas timeline -o trace.json --last 20

Open the file in https://ui.perfetto.dev or chrome://tracing. Each app is a process there, each of its contexts a
thread, and each call a bar over what it was made of: queued, chunks from pool and disk, recompute, prefill, decode,
commit. The viewers read the file on this machine; nothing is sent.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_client(parser)
    parser.add_argument("--last", metavar="N", type=_count, help="the last N calls (default: all that are known)")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write to this file, not to the terminal")


def run(args: argparse.Namespace) -> int:
    with connected(args, admin=True) as client:
        found = client.requests(everyone=True)
    if args.last:
        found = found[-args.last :]
    text = json.dumps(trace(found), ensure_ascii=False)
    if args.output is None:
        print(text)
        return 0
    try:
        args.output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{args.output} cannot be written: {error.strerror}") from None
    if sys.stderr.isatty():
        print_note(f"{len(found)} calls in {args.output}; open it in https://ui.perfetto.dev")
    return 0


def trace(requests: Iterable[RequestInfo]) -> dict[str, Any]:
    """The calls in Chrome's trace event format: https://perfetto.dev/docs/getting-started/other-formats"""
    requests = list(requests)
    numbers = {app: i + 1 for i, app in enumerate(dict.fromkeys(each.app for each in requests))}
    threads = {key: i + 1 for i, key in enumerate(dict.fromkeys((each.app, each.context) for each in requests))}
    events: list[dict[str, Any]] = []
    for app, number in numbers.items():
        events.append(_meta("process_name", number, 0, app))
    for (app, context), number in threads.items():
        name = next(each.name for each in requests if each.context == context)
        events.append(_meta("thread_name", numbers[app], number, name))
    for each in requests:
        events += _events(each, numbers[each.app], threads[each.app, each.context])
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _events(call: RequestInfo, process: int, thread: int) -> Iterator[dict[str, Any]]:
    """The call as one event, and its spans as others. A span that goes on has no end yet, and is left open."""
    place = {"pid": process, "tid": thread, "cat": "call"}
    began = call.submitted * 1e6
    ends = [span.end_ms for span in call.spans if span.end_ms is not None]
    about = {
        "call": call.call,
        "priority": call.priority,
        "n_prompt": call.n_prompt,
        "n_generated": call.n_generated,
        "n_paused": call.n_paused,
        "outcome": call.outcome or call.state,
    }
    yield {
        "name": f"{call.op} {call.call}",
        "ph": "X",
        "ts": began,
        "dur": max(ends, default=0.0) * 1e3,
        "args": about,
        **place,
    }
    for span in call.spans:
        event = {"name": span.name, "ts": began + span.start_ms * 1e3, "args": {"tokens": span.tokens}, **place}
        if span.end_ms is None:
            yield {**event, "ph": "B"}
        else:
            yield {**event, "ph": "X", "dur": (span.end_ms - span.start_ms) * 1e3}


def _meta(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value
