"""How a daemon's speed is divided among 1 to 16 clients: tokens a second of all and of each, and how long each waits.

Each client is an app of its own with a context, over the Unix socket of a real daemon. All ask at once, several rounds,
and each reads its answer to the end. The cells hold all contexts; ``bench.quantum`` measures 16 clients of which few
fit.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.lib.arrivals import gaps
from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import Answer, SocketClient
from bench.lib.daemon import daemon
from bench.lib.engine import engine
from bench.lib.stats import sig
from bench.lib.texts import Texts
from llmaas.api.async_client import AsyncClient

CLIENTS = (1, 2, 4, 8, 16)
_QUESTION = 24
"""Tokens of a question."""
_CELLS = 20 * 1024
"""All contexts fit: 16 of 512 tokens, with five questions and answers of 96."""


def measure(options: Options) -> Result:
    n_tokens, n_new, rounds = (192, 32, 2) if options.quick else (512, 96, 5)
    options.kept.expect(len(CLIENTS))
    with engine(options, 256) as thread:  # only for its tokenizer
        model = thread.engine.info.name
        per_client = n_tokens + rounds * _QUESTION
        texts = Texts(thread.engine, sum(CLIENTS) * (per_client + 8), options.seed)
        sizes = (n_tokens, *[_QUESTION] * rounds)
        prompts = {n: [[texts.take(size) for size in sizes] for _ in range(n)] for n in CLIENTS}
    rows = [options.step(f"{n} clients", partial(_row, options, n, prompts[n], n_new)) for n in CLIENTS]
    rate = {row["clients"]: row["tokens_per_s"] for row in rows}
    bars = [Bar("tokens a second of 16 clients, over those of one", rate[16] / rate[1], 1.0)]
    return Result(model, {"context_tokens": n_tokens, "answer_tokens": n_new, "rows": rows}, bars)


def _row(options: Options, n: int, prompts: list[list[str]], n_new: int) -> dict[str, Any]:
    with daemon(options, f"n{n}", "--cells", str(_CELLS), "--max-running", "16", endless=True) as (socket, _):
        answers = asyncio.run(answers_of(socket, prompts, n_new))
    row = figures(answers, n, n_new)
    say(f"{n:2} clients: {row['tokens_per_s']} tokens/s, first token after {row['ttft_ms_p50']} ms")
    return row


async def answers_of(
    socket: Path, prompts: list[list[str]], n_new: int, transport: str = "socket"
) -> list[list[Answer]]:
    """The answers of each round. ``prompts``: of each client, the text of its context, and one for each round."""
    async with AsyncExitStack() as stack:
        clients = []
        for i in range(len(prompts)):
            link = await AsyncClient.connect(socket, app=f"client{i}", transport=transport)
            client = SocketClient(await stack.enter_async_context(link))
            clients.append((client, await client.create()))
        for (client, context), texts in zip(clients, prompts, strict=True):
            await client.append(context, texts[0])
        rounds = []
        for number in range(1, len(prompts[0])):
            answers = [c.generate(context, p[number], n_new) for (c, context), p in zip(clients, prompts, strict=True)]
            for answer in answers:
                await answer.done()
            rounds.append(answers)
        return rounds


def figures(rounds: list[list[Answer]], n: int, n_new: int) -> dict[str, Any]:
    """Of all rounds; a round lasts from its first request to its last token."""
    seconds = sum(max(a.arrivals[-1] for a in some) - min(a.begin for a in some) for some in rounds)
    firsts = [answer.ttft * 1e3 for some in rounds for answer in some]
    between = [gap * 1e3 for some in rounds for gap in gaps([answer.arrivals for answer in some])]
    rate = len(rounds) * n * n_new / seconds
    return {
        "clients": n,
        "tokens_per_s": sig(rate),
        "per_client": sig(rate / n),
        **{f"ttft_ms_p{p}": sig(float(np.percentile(firsts, p))) for p in (50, 99)},
        **{f"gap_ms_p{p}": sig(float(np.percentile(between, p))) for p in (50, 99)},
    }


if __name__ == "__main__":
    sys.exit(main(Path(__file__).stem, (__doc__ or "").strip(), measure))
