#!/usr/bin/env python3
"""A chat that goes on where it ended, also after a restart of the machine.

The conversation is kept by the daemon, so this program keeps nothing: run it again, and the model remembers.
"""

from __future__ import annotations

import argparse
import sys

from llmaas import Client, LlmaasError, Sampling


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="memory", help="the conversation (default: %(default)s)")
    args = parser.parse_args()
    try:
        # retry_s: wait for a daemon that is restarted or busy.
        with Client(app="chat-memory", retry_s=30) as client:
            chat = client.context(args.name, system="You are a friendly assistant. Keep answers short.")
            sampling = Sampling(**{"temperature": 0.7, **client.server.get("sampling", {})})
            for message in chat.show().messages[-4:]:
                print(f"{message.role}: {message.content}")
            while True:
                try:
                    question = input("you: ")
                except EOFError:
                    return 0
                if not question.strip():
                    continue
                # "shift": when the context is full, its oldest turns go.
                answer = chat.generate(question, max_tokens=300, sampling=sampling, on_full="shift")
                for piece in answer:
                    print(piece.text, end="", flush=True)
                print()
    except KeyboardInterrupt:
        return 130
    except LlmaasError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
