"""One app of the demo: a process of its own that talks to the daemon as any app would.

Law: each line of stdin is a command of one word; JSON lines on stdout answer it, and the last of them has ``"what"``
done or failed. The end of stdin ends the app.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from llmaas.api.client import Client
from llmaas.calls import Done, Sampling
from llmaas.cli.demo.data import conversations
from llmaas.errors import LlmaasError, UnknownContext
from llmaas.records import ContextInfo

CONTEXT = "main"


class App:
    """The app's conversation, and which of its questions have been put."""

    def __init__(self, args: argparse.Namespace) -> None:
        talk = next(c for c in conversations() if c.app == args.app)
        self._history = talk.history(args.history)
        self._questions = talk.questions(args.history)
        self._asked = args.asked
        self._max_tokens = args.max_tokens
        self._seed = args.seed
        self._client = Client(args.socket, app=args.app, token="")
        self._context: ContextInfo | None = None

    def begin(self) -> dict[str, object]:
        """Make the context, and append all that the app has seen so far."""
        system, *past = self._history
        self._context = self._client.create(name=CONTEXT, system=system.content)
        return {"done": _plain(self._client.append(self._context.id, past))}

    def find(self) -> dict[str, object]:
        """Find the context that an earlier process of this app has made."""
        self._context = next((c for c in self._client.contexts() if c.name == CONTEXT), None)
        if self._context is None:
            raise UnknownContext(f"this app has no context {CONTEXT!r} any more")
        return {"tokens": self._context.n_tokens, "messages": self._context.n_messages}

    def turn(self) -> dict[str, object]:
        """Send the user's next message, and stream the answer."""
        assert self._context is not None
        question = self._questions[self._asked]
        self._asked += 1
        sampling = Sampling(temperature=0.7, seed=self._seed + self._asked)
        stream = self._client.generate(self._context.id, [question], max_tokens=self._max_tokens, sampling=sampling)
        for _ in stream:
            print_line({"what": "text", "text": stream.text})
        return {"done": _plain(stream.done), "question": question.content, "text": stream.text}


def _plain(done: Done) -> dict[str, object]:
    return asdict(done) | {"reason": done.reason.value}


def print_line(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo, which ends its apps by closing their stdin
    parser = argparse.ArgumentParser(description="One app of 'llmaas demo'.")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--app", required=True)
    parser.add_argument("--history", type=int, required=True, help="turns that the app has seen")
    parser.add_argument("--asked", type=int, default=0, help="questions that it has put since")
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    try:
        app = App(args)
        print_line({"what": "done"})
        commands = {"begin": app.begin, "find": app.find, "turn": app.turn}
        for line in sys.stdin:
            print_line(commands[line.strip()]() | {"what": "done"})
    except LlmaasError as error:
        print_line({"what": "failed", "message": error.message, "hint": error.hint})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
