"""Whether answers by JSON schemas are valid, and what a constraint costs.

SmolLM2 answers by 50 schemas as pydantic writes them, at temperature 1, 40 times each (quick: twice), four at a time.
``jsonschema`` says which of the answers that ended are valid. What a constraint costs is measured on the answers
themselves: what it takes to accept a token, and to make a mask of all that are allowed, which only the draws need whose
first token is refused.
"""

from __future__ import annotations

import json
import sys
from statistics import mean, median
from time import perf_counter, thread_time
from typing import Any

import jsonschema
import numpy as np

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.engine import engine
from bench.lib.pydantic_schemas import SCHEMAS
from bench.lib.stats import sig
from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Engine
from llmaas.engine.constraint.guidance import is_installed
from llmaas.engine.constraint.port import whole
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.records import Message

AT_ONCE = 4
MOST_TOKENS = 200


def sampling(name: str, seed: int) -> Sampling:
    return Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed, json_schema=json.dumps(SCHEMAS[name]))


def compile_ms(e: Engine) -> list[float]:
    """Milliseconds to make each schema ready, after the vocabulary was read."""
    e.check_sampling(Sampling(json_schema="{}"))
    times = []
    for name in SCHEMAS:
        begun = perf_counter()
        e.check_sampling(sampling(name, 0))
        times.append((perf_counter() - begun) * 1e3)
    return times


def answers(e: Engine, jobs: list[tuple[str, int]]) -> list[tuple[str, str | None]]:
    """What was said by each schema; None where the answer did not end within MOST_TOKENS."""
    said = [b""] * len(jobs)
    tokens: list[list[int] | None] = []
    for i, (name, seed) in enumerate(jobs):
        question = f"Give an example of {name!r} as JSON."
        tokens.append(e.tokenize(e.render([Message("user", question)], answer=True), special=True, bos=True))
        e.drop(i, 0)
        e.set_sampler(i, sampling(name, seed))
    ended = [False] * len(jobs)
    for _ in range(MOST_TOKENS):
        items = [BatchItem(i, e.length(i), row, i) for i, row in enumerate(tokens) if row is not None]
        if not items:
            break
        for item, token in zip(items, e.step(items), strict=True):
            assert isinstance(token, int)
            if e.is_end(token):
                ended[item.seq], tokens[item.seq] = True, None
            else:
                said[item.seq] += e.piece(token)
                tokens[item.seq] = [token]
    assert not any(e.sampler_failure(i) for i in range(len(jobs)))
    return [(name, text.decode() if end else None) for (name, _), text, end in zip(jobs, said, ended, strict=True)]


def follow_ms(e: LlamaEngine, said: dict[str, str]) -> tuple[list[float], list[float]]:
    """Milliseconds of CPU time for each token of answers: to have it accepted, and to have a mask of all tokens made
    and laid over logits. Each answer is followed twice; the first time nothing is known of its schema yet.
    """
    constraints, logits = e.decoder.samplers.constraints, np.zeros(e.info.n_vocab, np.float32)
    accept, mask = [], []
    for name, text in said.items():
        for _ in range(2):
            constraint = constraints.begin(sampling(name, 0))
            assert constraint is not None
            for token in e.tokenize(text, special=False, bos=False):
                begun = thread_time()
                logits[~whole(constraint.allowed())] = -np.inf
                masked = thread_time()
                accepted = constraint.accept(token)
                accept.append((thread_time() - masked) * 1e3)
                mask.append((masked - begun) * 1e3)
                if not accepted:  # written with other tokens, one of which would be two of the answer
                    break
    return accept, mask


def measure(options: Options) -> Result:
    with engine(options) as thread:
        return thread.submit(_measure, thread.engine, options).result()


def _measure(e: Engine, options: Options) -> Result:
    assert isinstance(e, LlamaEngine)
    compiled, said = compile_ms(e), dict[str, str]()
    jobs = [(name, options.seed * 1000 + i) for i in range(2 if options.quick else 40) for name in SCHEMAS]
    n_valid, n_invalid = 0, 0
    for at in range(0, len(jobs), AT_ONCE):
        for name, text in answers(e, jobs[at : at + AT_ONCE]):
            if text is not None and is_valid(text, SCHEMAS[name]):
                n_valid += 1
                said[name] = text
            elif text is not None:
                n_invalid += 1
                say(f"INVALID by {name!r}: {text}")
    accept, mask = follow_ms(e, said)
    figures = {
        "guidance": is_installed(),
        "answers": len(jobs),
        "valid": n_valid,
        "invalid": n_invalid,
        "cut_off": len(jobs) - n_valid - n_invalid,
        "compile_ms": {"median": sig(median(compiled)), "most": sig(max(compiled))},
        "accept_ms": {"mean": sig(mean(accept)), "most": sig(max(accept))},
        "mask_ms": {"mean": sig(mean(mask)), "median": sig(median(mask)), "most": sig(max(mask))},
    }
    bars = [
        Bar("invalid answers", n_invalid, 0, at_most=True),
        Bar("valid answers, of those begun", n_valid / len(jobs), 0.5),
        Bar("ms of a token, with a mask each time", mean(accept) + mean(mask), 0.3, at_most=True),
    ]
    return Result(e.info.name, figures, bars)


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


if __name__ == "__main__":
    sys.exit(main("schemas", __doc__ or "", measure))
