"""How soon an urgent request is answered while others keep the daemon busy.

A real daemon has several clients, each on a connection of its own. In the background one client prefills a long prompt
(4096 tokens) and four more get answers one after another, each call in a fresh context. Meanwhile another client sends
a short request (32 tokens) or a medium one (512) every so often. ``ttft_ms`` is the time from sending it to its first
token, as its client sees it:

* idle: there is no background;
* urgent: the request has priority 0, the background 8;
* equal: all have priority 5.

An urgent request must not make the daemon compute anything twice: none of the background's calls may recompute, and the
daemon must prefill exactly as many tokens as all requests together have.

For comparison: llama-server with four slots makes a short request wait for 12.5 s while it prefills 3000 words for
another (SmolLM2-135M, two x86 cores).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.lib.cli import Bar, Options, Result, main, say
from bench.lib.clients import SocketClient
from bench.lib.daemon import daemon
from bench.lib.engine import engine
from bench.lib.stats import sig, summary
from bench.lib.texts import Texts
from llmaas.api.async_client import AsyncClient
from llmaas.calls import Done, Priority, Terms
from llmaas.planner.settings import PlannerChoices

URGENT = Terms(priority=0)
BACKGROUND = Terms(priority=Priority.BACKGROUND)
NORMAL = Terms(priority=Priority.NORMAL)
_DECODES = 4
_PROMPT = 64
_ANSWER = 192
"""Tokens of each of the background's prompts and answers."""
_EVERY_S = 0.4
"""Seconds between the end of one request and the begin of the next, on average."""
_TEXT = 80_000
"""Tokens of text for all prompts."""


@dataclass
class Background:
    """One long prefill, and answers until ``stop``. ``dones`` are the replies of all its calls."""

    clients: Sequence[SocketClient]
    texts: Texts
    terms: Terms
    dones: list[Done] = field(default_factory=list)
    _stop: bool = False

    async def prefill(self, n_tokens: int) -> None:
        client = self.clients[0]
        context = await client.create()
        self.dones.append(await client.append(context, self.texts.take(n_tokens), self.terms))
        await client.delete(context)

    async def answer(self, client: SocketClient) -> None:
        while not self._stop:
            context = await client.create()
            self.dones.append(await client.generate(context, self.texts.take(_PROMPT), _ANSWER, self.terms).done())
            await client.delete(context)

    def stop(self) -> None:
        self._stop = True


class Requests:
    """Requests of the first client to a daemon, alone and while the other clients keep it busy."""

    def __init__(self, clients: Sequence[SocketClient], texts: Texts) -> None:
        self._mine, self._others, self._texts = clients[0], clients[1:], texts

    async def request(self, n_prompt: int, terms: Terms) -> tuple[float, Done]:
        """Seconds to the first token of a short answer in a fresh context."""
        context = await self._mine.create()
        answer = self._mine.generate(context, self._texts.take(n_prompt), 4, terms)
        done = await answer.done()
        await self._mine.delete(context)
        return answer.ttft, done

    async def idle(self, n_prompt: int, times: int) -> list[float]:
        found = []
        for _ in range(times + 1):
            await self._mine.wait_idle()
            found.append((await self.request(n_prompt, URGENT))[0])
        return found[1:]

    async def busy(
        self, n_long: int, sizes: Sequence[int], terms: Terms, others: Terms, most: int
    ) -> tuple[dict[int, list[float]], dict[str, Any]]:
        """Seconds to the first token, by size of the prompt, of at most ``most`` requests while the background
        prefills ``n_long`` tokens; and the accounts of that time (see ``accounts_of``).
        """
        await self._mine.wait_idle()
        before = await self._mine.counts()
        background = Background(self._others, self._texts, others)
        answers = [asyncio.ensure_future(background.answer(client)) for client in self._others[1:]]
        await asyncio.sleep(0.5)
        prefill = asyncio.ensure_future(background.prefill(n_long))
        await asyncio.sleep(0.5)
        found: dict[int, list[float]] = {n: [] for n in sizes}
        mine: list[Done] = []
        while len(mine) < most and not prefill.done():
            n = sizes[len(mine) % len(sizes)]
            seconds, done = await self.request(n, terms)  # it may end after the prefill
            mine.append(done)
            found[n].append(seconds)
            say(f"priority {terms.priority} among {others.priority}: {n:4} tokens, {seconds * 1e3:6.0f} ms")
            await asyncio.sleep(
                _EVERY_S * (0.5 + 0.618 * len(mine) % 1.0)
            )  # so that requests meet slices at all their moments
        background.stop()
        await asyncio.gather(prefill, *answers)
        return found, accounts_of(background.dones, mine, before, await self._mine.counts())


def accounts_of(
    background: Sequence[Done], mine: Sequence[Done], before: dict[str, int], after: dict[str, int]
) -> dict[str, int]:
    """The tokens that were asked of the daemon, and those that it says it computed, between two of its counts."""
    return {
        "background_calls": len(background),
        "background_paused": sum(done.n_paused for done in background),
        "background_recomputed": sum(done.switch.recomputed for done in background),
        "asked_tokens": sum(done.n_prompt for done in (*background, *mine)),
        "prefilled_tokens": after["tokens_prefilled"] - before["tokens_prefilled"],
        "recomputed_tokens": after["tokens_recomputed"] - before["tokens_recomputed"],
    }


async def run_all(
    options: Options, socket: Path, texts: Texts, n_long: int, sizes: Sequence[int], rounds: int, most: int
) -> list[Any]:
    async with AsyncExitStack() as parts:
        clients = []
        for i in range(2 + _DECODES):
            client = await AsyncClient.connect(socket, app=f"bench{i}")
            clients.append(SocketClient(await parts.enter_async_context(client)))
        requests = Requests(clients, texts)
        ways: dict[str, dict[int, list[float]]] = {way: {n: [] for n in sizes} for way in ("idle", "urgent", "equal")}
        accounts: dict[str, list[Any]] = {"urgent": [], "equal": []}
        for i in range(rounds):
            for n in sizes:
                ways["idle"][n] += await requests.idle(n, 5)
            for way, terms, others in (("urgent", URGENT, BACKGROUND), ("equal", NORMAL, NORMAL)):
                say(f"round {i}: {way}, while {n_long} tokens are prefilled")
                found, account = await requests.busy(n_long, sizes, terms, others, most)
                accounts[way].append(account)
                for n in sizes:
                    ways[way][n] += found[n]
        return [rows(ways, sizes), accounts]


def rows(ways: dict[str, dict[int, list[float]]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Figures by size of the prompt. ``over_idle_ms``: how much later the first token is than with an idle daemon, by
    medians."""
    found = []
    for n in sizes:
        row: dict[str, Any] = {"prompt_tokens": n}
        for way, times in ways.items():
            if not times[n]:
                raise RuntimeError(f"no request of {n} tokens came while the background prefilled: {way}")
            row[way] = {"ttft_ms": summary([x * 1e3 for x in times[n]])}
            row[way]["over_idle_ms"] = sig((median(times[n]) - median(ways["idle"][n])) * 1e3)
            row[way]["ttft_p99_ms"] = sig(float(np.percentile(times[n], 99)) * 1e3)
        found.append(row)
    return found


def measure(options: Options) -> Result:
    n_long, sizes, rounds, most = (2048, (32,), 1, 12) if options.quick else (4096, (32, 512), 3, 20)
    with engine(options, 256) as thread:  # only for its tokenizer
        texts = Texts(thread.engine, _TEXT, options.seed)
        model = thread.engine.info.name
        with daemon(options, "daemon", "--priority-floor", "0", endless=True) as (socket, _):
            found, accounts = asyncio.run(run_all(options, socket, texts, n_long, sizes, rounds, most))
    target = PlannerChoices().step_target
    figures = {"prefill_tokens": n_long, "decodes": _DECODES, "step_target_s": target, "prompts": found}
    figures["books"] = accounts
    return Result(model, figures, bars(found, accounts, target))


def bars(rows: Sequence[dict[str, Any]], accounts: dict[str, list[Any]], step_target: float) -> list[Bar]:
    """A short urgent request may wait for two slices of the background's prefill; nothing may be computed twice."""
    short = rows[0]
    n = short["prompt_tokens"]
    found = [
        Bar(f"{n} tokens, urgent: ms later than with an idle daemon (median)",
            short["urgent"]["over_idle_ms"], 2 * step_target * 1e3, True),
        Bar(f"{n} tokens, urgent: ms to the first token (p90)", short["urgent"]["ttft_ms"]["p90"], 300, True),
    ]  # fmt: skip
    for way, some in accounts.items():
        again = sum(account["background_recomputed"] + account["recomputed_tokens"] for account in some)
        more = max(account["prefilled_tokens"] / account["asked_tokens"] for account in some)
        found.append(Bar(f"{way}: tokens computed again", again, 0, True))
        found.append(Bar(f"{way}: tokens prefilled, over what was asked", more, 1.0, True))
    return found


if __name__ == "__main__":
    sys.exit(main("urgent", __doc__ or "", measure))
