"""``llmaas chat``: a conversation in a terminal, or one question from a script.

Law: a script finds the answer and nothing else on stdout. Ctrl-C ends an answer, never the conversation: what was
streamed stays part of the context.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from llmaas.cli.answer import Ended, Shown, show_answer
from llmaas.cli.chat_input import Lines, read_piped
from llmaas.cli.contexts import matching
from llmaas.cli.dialogue import PATIENCE_S, Dialogue
from llmaas.cli.generation import add_generation, add_terms, terms
from llmaas.cli.options import add_client, configured, connected
from llmaas.cli.out import dim, human_age, print_note, printable, shortened
from llmaas.clock import RealClock
from llmaas.errors import BadRequest

if TYPE_CHECKING:
    from llmaas.api.client import Client
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
Ctrl-C ends an answer, Ctrl-D or /bye the conversation; /help says what else there is: /undo, and messages of
several lines. If the daemon is restarted, conversations and single questions wait for it and go on.

The line after an answer says how many tokens the context has, where they were when it was asked for, and how long
switching to it took. An answer that was paused for others is switched in more than once; its tokens count each time.
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
    # A dialogue tells the user that it waits for a daemon, so it connects again by itself.
    with connected(args, retry_s=0 if text is None else PATIENCE_S) as client:
        _note_priority(client, terms(args).priority)
        if text is not None:
            context = _open(client, args.context or _ONCE_CONTEXT, args.system)
            ended = show_answer(client, context.id, [text], args, config.max_tokens, Shown())
            return 0 if ended is Ended.WHOLE else 130
        with Lines() as lines:
            if word := args.context or _choose(client, lines):
                context = _open(client, word, args.system)
                _converse(client, context, lines, args, config.max_tokens)
    return 0


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
        made = client.context(word, system=system).info  # unlike ``create`` it may be asked again
        if made.note:
            print_note(printable(made.note))
        return made
    if system is not None:
        print_note(f"{printable(found.name)} exists already: --system is not used")
    return found


def _converse(client: Client, context: ContextInfo, lines: Lines, args: argparse.Namespace, max_tokens: int) -> None:
    talk = Dialogue(client, lambda: connected(args), context, args, max_tokens)
    try:
        talk.run(lines)
    finally:
        talk.client.close()
