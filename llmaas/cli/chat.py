"""``llmaas chat``: a conversation in a terminal, or one question from a script.

Law: a script finds the answer and nothing else on stdout. Ctrl-C ends an answer, never the conversation: what was
streamed stays part of the context.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from llmaas.cli.chat_input import Lines, read_piped
from llmaas.cli.contexts import matching
from llmaas.cli.generation import add_generation, add_terms, sampling, terms
from llmaas.cli.options import add_client, configured, connected
from llmaas.cli.out import dim, human_age, print_error, print_note, printable, shortened
from llmaas.clock import RealClock
from llmaas.errors import BadRequest, Cancelled, LlmaasError, NotServing, ShuttingDown

if TYPE_CHECKING:
    from llmaas.api.client import Client
    from llmaas.calls import Done
    from llmaas.config.settings import Config
    from llmaas.records import ContextInfo

_ONCE_CONTEXT = "chat"
_EPILOG = """\
examples:
  llmaas chat                              choose a context, or name a new one
  llmaas chat notes --system "Be brief."   the system message goes into a new context
  llmaas chat notes --once "And then?"     one question, one answer
  git diff | llmaas chat review --once "Review this:" --stdin
  llmaas chat notes --adapter terse        with a LoRA adapter ('llmaas adapter ls'); the context keeps it
  llmaas chat notes --temperature 0        always the likeliest token, so that the same is answered again
  llmaas chat notes < question.txt         the whole input is one message

Without CONTEXT, --once and piped input use the context 'chat'.
Ctrl-C ends an answer, Ctrl-D the conversation. The line after an answer says how many tokens the
context has, where they were when it was asked for, and how long switching to it took.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("context", nargs="?", help="name (or id) of the context; made if there is none")
    parser.add_argument("--once", metavar="TEXT", help="send TEXT, print the answer, end")
    parser.add_argument("--stdin", action="store_true", help="add standard input to the message of --once")
    parser.add_argument("--system", metavar="TEXT", help="system message, if the context is new")
    parser.add_argument(
        "--status",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a line of figures on stderr after each answer (default: if stderr is a terminal)",
    )
    add_generation(parser)
    add_terms(parser)
    add_client(parser, "max_tokens")


def run(args: argparse.Namespace) -> int:
    config = configured(args)
    text = _piped_text(args)
    with connected(args) as client:
        _note_priority(client, terms(args).priority)
        if text is not None:
            context = _open(client, args.context or _ONCE_CONTEXT, args.system)
            return 0 if _answer(client, context, text, args, config) else 130
        with Lines() as lines:
            word = args.context or _choose(client, lines)
            if word is None:
                return 0
            return _converse(client, _open(client, word, args.system), lines, args, config)


def _note_priority(client: Client, wanted: int) -> None:
    most_urgent = client.server.get("limits", {}).get("most_urgent", 0)
    if wanted < most_urgent:
        print_note(f"--priority {wanted} counts as {most_urgent}: the daemon's urgent_apps does not name this app")


def _piped_text(args: argparse.Namespace) -> str | None:
    """The message of a command that is not interactive; None for an interactive one."""
    if args.stdin and args.once is None:
        raise BadRequest("--stdin needs --once", hint="Piped input alone is read as the message anyway.")
    if args.once is not None:
        text = f"{args.once}\n\n{read_piped()}" if args.stdin else str(args.once)
    elif sys.stdin.isatty():
        return None
    else:
        text = read_piped()
    text = text.rstrip("\n")  # files end with a newline; it is not part of the message
    if not text.strip():
        raise BadRequest("the message is empty", hint="Give text with --once, or pipe it in.")
    return text


def _choose(client: Client, lines: Lines) -> str | None:
    """The user's choice among the app's contexts, or a new name; None to leave."""
    contexts = sorted(client.contexts(), key=lambda c: -c.last_used)
    now = RealClock().wall()
    for number, info in enumerate(contexts, 1):
        age = human_age(max(0.0, now - info.last_used))
        print(f"{number:4}  {printable(shortened(info.name))}  {dim(f'{info.n_tokens} tokens, {age}', sys.stdout)}")
    ask = f"context (1-{len(contexts)}, or a new name): " if contexts else "name of the new context: "
    word = (lines.read(ask) or "").strip()
    if word.isdecimal() and 1 <= int(word) <= len(contexts):
        return contexts[int(word) - 1].id
    return word or None


def _open(client: Client, word: str, system: str | None) -> ContextInfo:
    found = matching(word, client.contexts())
    if found is None:
        made = client.create(name=word, system=system)
        if made.note:
            print_note(printable(made.note))
        return made
    if system is not None:
        print_note(f"{printable(found.name)} exists already: --system is not used")
    return found


def _converse(client: Client, context: ContextInfo, lines: Lines, args: argparse.Namespace, config: Config) -> int:
    if context.n_messages:
        print(dim(f"{printable(context.name)}: {context.n_messages} messages so far", sys.stdout))
    while (text := lines.read("> ")) is not None:
        if not text.strip():
            continue
        try:
            _answer(client, context, text, args, config)
        except (NotServing, ShuttingDown):
            raise  # there is no daemon left to talk to
        except LlmaasError as error:
            print_error(error.message, error.hint)
        except KeyboardInterrupt:  # before the answer began, or again while it was being cancelled
            print()
    return 0


def _answer(client: Client, context: ContextInfo, text: str, args: argparse.Namespace, config: Config) -> bool:
    """Stream one answer to stdout; False if the user cancelled it."""
    stream = client.generate(
        context.id,
        [{"role": "user", "content": text}],
        max_tokens=config.max_tokens,
        sampling=sampling(args, client.server.get("sampling") or {}),
        stop=args.stop,
        on_full=args.on_full,
        terms=terms(args),
    )
    cancelled = False
    while True:
        try:
            for piece in stream:
                print(printable(piece.text, keep="\n\t"), end="", flush=True)
            print()
            break
        except Cancelled:
            print()
            print_note("cancelled; what was said so far is kept")
            return False
        except KeyboardInterrupt:
            if cancelled:
                raise
            cancelled = True
            stream.cancel()
    if args.status or (args.status is None and sys.stderr.isatty()):
        print(dim(status_line(stream.done), sys.stderr), file=sys.stderr)
    return True


def status_line(done: Done) -> str:
    """What an answer cost: tokens, where the context was, switch, first token, speed."""
    switch = done.switch
    tiers = {"cells": switch.cells, "pool": switch.pool, "disk": switch.disk, "recomputed": switch.recomputed}
    came = ", ".join(f"{tier} {n}" for tier, n in tiers.items() if n) or "nothing"
    return (
        f"[{done.n_tokens} tokens ({done.n_prompt} new, {done.n_generated} answered) · "
        f"switch {switch.switch_ms:.1f} ms ({came}) · first token {done.ttft_ms:.0f} ms · {done.decode_tps:.1f} tok/s]"
    )
