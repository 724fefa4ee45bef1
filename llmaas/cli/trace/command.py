"""``llmaas trace``: makes traces, shows what is in them, and takes them from recordings and from public data.

Law: no daemon is asked; files are read and written, and that is all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmaas.cli.options import add_actions, positive

_EPILOG = """\
examples:
  llmaas trace gen phone --hours 24 -o day.jsonl         a day of one phone
  llmaas trace gen markov --contexts 16 --seed 2 -o m.jsonl.gz
  llmaas trace show traces/evening.jsonl --first 5
  llmaas trace stats traces/evening.jsonl
  llmaas trace plot traces/evening.jsonl -o evening.png
  llmaas trace record calls.recording -o mine.jsonl      a daemon's recording, to share: no text, no names
  llmaas trace import azure AzureLLMInferenceTrace_conv.csv -o bursts.jsonl.gz
  llmaas trace import conversations chats.jsonl --pattern markov --calls 300 -o chats-trace.jsonl

A trace has one JSON object a line, in order of time: at second t, a context gets prompt tokens and generates some.
  {"t": 12.5, "app": "mail", "context": "inbox", "prompt": 80, "generate": 40}
A file whose name ends with .gz or .zst is compressed. Run a trace with

  llmaas replay TRACE              through the daemon's planner, in virtual time: seconds for days of calls
  python -m bench.replay           on the real model, against other programs (bench/README.md)

docs/traces.md has the format, and where each generator's numbers come from.
"""
_LIMIT = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from llmaas.cli.trace import actions
    from llmaas.traces.generators import ABOUT
    from llmaas.traces.switching import HOURS, PATTERNS

    parser.epilog = _EPILOG
    action = add_actions(parser, of_client=False)

    gen = action("gen", actions.gen, "make a trace")
    patterns = "; ".join(f"{name}: {about}" for name, about in ABOUT.items())
    gen.add_argument(
        "pattern", choices=list(ABOUT), metavar="PATTERN", help=f"which context is called next. {patterns}"
    )
    gen.add_argument("--hours", type=positive(float), default=HOURS, help="how long it is (default: %(default)g)")
    _add_sizes(gen)
    _add_output(gen)

    for name, do, help in (
        ("show", actions.show, "print the calls of a trace as a table"),
        ("stats", actions.stats, "count and measure: calls, gaps, lengths, and how often the context changes"),
        ("plot", actions.plot, "draw a picture: who is called when, gaps, and how contexts grow (needs matplotlib)"),
    ):
        sub = action(name, do, help)
        sub.add_argument("trace", type=Path, help="a trace, perhaps compressed")
        match name:
            case "show":
                sub.add_argument("--first", type=positive(int), metavar="N", help="only the first N calls")
            case "stats":
                sub.add_argument("--json", action="store_true", help="print JSON")
            case _:
                _add_output(sub, "the picture: .png, .svg or .pdf")

    record = action("record", actions.record, "make a trace of a daemon's recording, without text and names")
    record.add_argument("recording", type=Path, help="the file of 'llmaas serve --record FILE'; the daemon may go on")
    record.add_argument("--key", help="hash names by this text, so that traces of one device can be joined")
    _add_output(record)

    take = action("import", actions.take, "make a trace of public data, which is not part of llmaas")
    sources = "; ".join(f"{name}: {about}" for name, about in actions.SOURCES.items())
    take.add_argument("source", choices=list(actions.SOURCES), metavar="SOURCE", help=f"what the file is. {sources}")
    take.add_argument("file", type=Path, help="the file, perhaps compressed")
    take.add_argument(
        "--pattern", choices=PATTERNS, default="markov", help="who is called, where the file does not say it"
    )
    take.add_argument("--calls", type=positive(int), default=200, help="of conversations (default: %(default)s)")
    take.add_argument(
        "--scale", type=positive(float), default=1.0, help="multiply mooncake's lengths (default: %(default)g)"
    )
    _add_sizes(take)
    _add_output(take)


def run(args: argparse.Namespace) -> int:
    code: int = args.do(args)
    return code


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--contexts", type=positive(int), default=16, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--limit", type=positive(int), default=_LIMIT, metavar="TOKENS", help="of a context (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="another trace of the same kind (default: %(default)s)")


def _add_output(parser: argparse.ArgumentParser, what: str = "default: standard output") -> None:
    required = not what.startswith("default")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=required, help=what)
