"""The conversation of ``llmaas chat`` at a terminal: messages, commands, and a daemon that may be restarted meanwhile.

Law: after a restart nothing is lost and nothing is there twice: what the daemon has stored decides whether a message is
sent again, not what was seen of the answer.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from llmaas.cli.answer import Shown, show_answer
from llmaas.cli.chat_input import Lines
from llmaas.cli.out import dim, print_error, print_note, printable, shortened
from llmaas.clock import RealClock
from llmaas.errors import BadRequest, LlmaasError, NotServing, ShuttingDown, UnknownContext

if TYPE_CHECKING:
    from llmaas.api.client import Client
    from llmaas.records import ContextInfo

T = TypeVar("T")

HELP = '''\
/help   this text
/undo   take your last message and its answer back
/bye    end; the context stays (Ctrl-D does the same)
"""     begins a message of several lines, and ends it
Ctrl-C ends an answer; what was said of it stays. A line with a space before its / is a message.'''
_RETRY_S = 0.2
PATIENCE_S = 120.0
"""Seconds that a user waits for the daemon: a large model takes one to load."""


class Dialogue:
    """A conversation in one context. ``connect`` makes a new client after the daemon was restarted."""

    def __init__(
        self,
        client: Client,
        connect: Callable[[], Client],
        context: ContextInfo,
        args: argparse.Namespace,
        max_tokens: int,
    ) -> None:
        self.client = client
        self._connect, self.context, self._args, self._max_tokens = connect, context, args, max_tokens

    def run(self, lines: Lines) -> None:
        """Talk until the user has enough."""
        if self.context.n_messages:
            shown = f"{printable(self.context.name)}: {self.context.n_messages} messages so far"
            print(dim(shown, sys.stdout))
        while (text := lines.read("> ")) is not None and text.strip() != "/bye":
            try:
                self._do(text)
            except LlmaasError as error:
                print_error(error.message, error.hint)
            except KeyboardInterrupt:  # before the answer began, or again while it was being cancelled
                print()

    def _do(self, text: str) -> None:
        match text.strip():
            case "":
                pass
            case "/help" | "/?":
                print(HELP)
            case "/undo":
                self._undo()
            case word if text.startswith("/") and word[1:].isalpha():
                raise BadRequest(f"{word} is no command", hint="/help lists the commands.")
            case _:
                self.say(text)

    def _undo(self) -> None:
        messages = self._patiently(lambda: self.client.show(self.context.id)).messages
        last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
        if last is None:
            raise BadRequest("there is no message to take back", hint="/undo is for messages of yours.")
        self._patiently(lambda: self.client.truncate(self.context.id, n_messages=last))
        print(dim(f"taken back: {printable(shortened(messages[last].content))}", sys.stdout))

    # -- a message, through restarts of the daemon

    def say(self, text: str) -> None:
        """Send a message and show its answer to the end, however often the daemon is restarted."""
        before, messages, shown, stored = self._patiently(self._info), [text], Shown(), Shown()
        key = os.urandom(16).hex()  # the message is in the context once, however often it is sent
        while (left := self._max_tokens - shown.n_tokens) > 0:
            try:
                once = key if messages else None
                show_answer(self.client, self.context.id, messages, self._args, left, shown, idempotency_key=once)
                return
            except (NotServing, ShuttingDown) as lost:
                if shown.text:
                    print()
                after = self._patiently(self._settled, lost)
                if _stamp(after) == _stamp(before):
                    if shown.text != stored.text:
                        print_note("what came last of the answer was not stored; it is computed again")
                    shown = replace(stored)
                    continue
                if not self._goes_on(text, shown, isinstance(lost, ShuttingDown)):
                    return
                before, messages, stored = after, [], replace(shown)

    def _goes_on(self, text: str, shown: Shown, interrupted: bool) -> bool:
        """The turn is stored: show what the user has not seen of it. True if the answer is to go on from there.

        Raises BadRequest if the end of the context is another turn.
        """
        said = self._patiently(lambda: self.client.show(self.context.id)).messages
        asked, answer = (said[-2:-1], said[-1].content) if said and said[-1].role != "user" else (said[-1:], "")
        if [message.content for message in asked] != [text]:
            raise BadRequest("the context was changed meanwhile", hint="'llmaas ctx show' shows it.")
        if interrupted or not answer:
            print_note("the daemon was restarted; the answer goes on")
        if answer.startswith(shown.text):
            print(printable(answer[len(shown.text) :], keep="\n\t"), end="", flush=True)
        shown.text = answer
        if not interrupted and answer:
            # Without a word from the daemon, a stored answer is a whole one whose last reply was lost.
            print()
            return False
        return True

    def _info(self) -> ContextInfo:
        for info in self.client.contexts():
            if info.id == self.context.id:
                return info
        raise UnknownContext(f"the context {self.context.name!r} is gone", hint="Begin another one.")

    def _settled(self) -> ContextInfo:
        """As ``_info``, after any turn that the daemon has not ended yet: a migration waits for its turn, and does
        nothing to a context of this model."""
        info = self._info()
        return self.client.migrate(info.id) if info.usable else info

    def _patiently(self, ask: Callable[[], T], lost: LlmaasError | None = None) -> T:
        """``ask()``, as soon as a daemon serves; ``lost`` says that it does not now. Raises what it raises else."""
        late = RealClock().now() + PATIENCE_S
        waited = False
        while True:
            try:
                if lost is not None:
                    self._reconnect()
                found = ask()
            except (NotServing, ShuttingDown) as error:
                if RealClock().now() > late:
                    raise
                if not waited:
                    print_note("the daemon does not serve; waiting for it (Ctrl-C ends that)")
                waited, lost = True, error
                threading.Event().wait(_RETRY_S)
            else:
                return found

    def _reconnect(self) -> None:
        self.client.close()
        self.client = self._connect()


def _stamp(info: ContextInfo) -> tuple[float, int, int]:
    """Changes when a turn is stored."""
    return info.last_used, info.n_messages, info.n_tokens
