#!/usr/bin/env python3
"""Ask a text file questions. It is read once: later questions begin at once, today or next week.

The file's content has a context of its own, found again by a hash. A question goes into a fork of it, which shares all
that was computed, so that questions do not get mixed up.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from llmaas import Client, LlmaasError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a text file")
    parser.add_argument("questions", nargs="+", metavar="question")
    parser.add_argument("--words", type=int, default=100, help="of an answer, about (default: %(default)s)")
    args = parser.parse_args()
    try:
        text = args.file.read_text("utf-8", "replace")
        name = f"{args.file.name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        with Client(app="document-qa", retry_s=60) as client:
            document = client.context(name, system=f"Answer questions about this text.\n\n{text}")
            for question in args.questions:
                with document.forked() as fork:
                    answer = fork.generate(question, max_tokens=args.words * 2, progress=True)
                    for piece in answer:
                        if piece.progress:
                            print(f"reading: {piece.progress.done} of {piece.progress.total} tokens", file=sys.stderr)
                        print(piece.text, end="", flush=True)
                    print(flush=True)
                    print(f"[first word after {answer.done.ttft_ms:.0f} ms]", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    except LlmaasError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
