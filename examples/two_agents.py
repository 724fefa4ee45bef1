#!/usr/bin/env python3
"""Two agents: one writes, the other one judges by a JSON schema, until the judge is content or the rounds are over.

Each has a context of its own, which grows by what the other one says; the daemon switches between them at once.
"""

from __future__ import annotations

import argparse
import sys

from llmaas import Client, LlmaasError

VERDICT = {
    "type": "object",
    "properties": {
        "mark": {"type": "integer", "minimum": 1, "maximum": 10},
        "advice": {"type": "string", "minLength": 1, "maxLength": 160},
    },
    "required": ["mark", "advice"],
    "additionalProperties": False,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help='what is to be written, e.g. "a slogan for a bakery"')
    parser.add_argument("--rounds", type=int, default=3, help="at most (default: %(default)s)")
    parser.add_argument("--content", type=int, default=9, help="the mark that is good enough (default: %(default)s)")
    args = parser.parse_args()
    try:
        with Client(app="two-agents", retry_s=60) as client:
            writer = client.context("writer", system="You write short texts. Answer with the text alone.")
            judge = client.context("judge", system="You judge texts. Give a mark from 1 to 10, and advice, in JSON.")
            request = f"Write {args.task}."
            # Forks: the next run begins anew, and what both agents always read is not computed again.
            with writer.forked() as writing, judge.forked() as judging:
                for n in range(1, args.rounds + 1):
                    text = writing.ask(request, max_tokens=120, temperature=0.7).strip()
                    verdict = judging.ask_json(f"Task: {args.task}\nText: {text}", VERDICT, max_tokens=300)
                    print(f"--- {n}\n{text}\n[{verdict['mark']}/10] {verdict['advice']}", flush=True)
                    if verdict["mark"] >= args.content:
                        break
                    request = f"Write it again, better. Advice: {verdict['advice']}"
    except KeyboardInterrupt:
        return 130
    except LlmaasError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
