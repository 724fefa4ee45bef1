"""How soon an urgent request is answered while others keep the daemon busy.

A real daemon, several clients on connections of their own. In the background one prefills a long prompt (4096 tokens)
and four more answer without pause, each call a fresh context; meanwhile a short request (32 tokens) or a medium one
(512) comes every so often. ``ttft_ms`` is from sending it to its first token, as its client sees it:

* idle: nobody else is there;
* urgent: it has priority 0, the background 8;
* equal: all have priority 5.

An urgent request must not cost the background what was computed already: none of the background's calls may recompute,
and the daemon's count of prefilled tokens must be what was asked of it, all requests together.

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
from bench.lib.clients import Over
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
"""Between the end of one request and the next, on average."""
_TEXT = 80_000


@dataclass
class Background:
    """One long prefill and some answers, until told to end; what their calls replied."""

    doors: Sequence[Over]
    texts: Texts
    terms: Terms
    dones: list[Done] = field(default_factory=list)
    _stop: bool = False

    async def prefill(self, n_tokens: int) -> None:
        door = self.doors[0]
        context = await door.create()
        self.dones.append(await door.append(context, self.texts.take(n_tokens), self.terms))
        await door.delete(context)

    async def answer(self, door: Over) -> None:
        while not self._stop:
            context = await door.create()
            self.dones.append(await door.answer(context, self.texts.take(_PROMPT), _ANSWER, self.terms).done())
            await door.delete(context)

    def stop(self) -> None:
        self._stop = True


class House:
    """A daemon with its clients."""

    def __init__(self, doors: Sequence[Over], texts: Texts) -> None:
        self._mine, self._others, self._texts = doors[0], doors[1:], texts

    async def request(self, n_prompt: int, terms: Terms) -> tuple[float, Done]:
        """Seconds to the first token of a short answer in a fresh context."""
        context = await self._mine.create()
        answer = self._mine.answer(context, self._texts.take(n_prompt), 4, terms)
        done = await answer.done()
        await self._mine.delete(context)
        return answer.ttft, done

    async def idle(self, n_prompt: int, times: int) -> list[float]:
        found = []
        for _ in range(times + 1):
            await self._mine.rest()
            found.append((await self.request(n_prompt, URGENT))[0])
        return found[1:]

    async def busy(
        self, n_long: int, sizes: Sequence[int], terms: Terms, others: Terms, most: int
    ) -> tuple[dict[int, list[float]], dict[str, Any]]:
        """Times to the first token of ``most`` requests, fewer if the background's long prefill is over before, by
        prompt size; and what became of the background.
        """
        await self._mine.rest()
        before = await self._mine.counts()
        background = Background(self._others, self._texts, others)
        answers = [asyncio.ensure_future(background.answer(door)) for door in self._others[1:]]
        await asyncio.sleep(0.5)
        prefill = asyncio.ensure_future(background.prefill(n_long))
        await asyncio.sleep(0.5)
        found: dict[int, list[float]] = {n: [] for n in sizes}
        mine: list[Done] = []
        while len(mine) < most and not prefill.done():
            n = sizes[len(mine) % len(sizes)]
            seconds, done = await self.request(n, terms)  # it may outlast the prefill, if that was in its way
            mine.append(done)
            found[n].append(seconds)
            say(f"priority {terms.priority} among {others.priority}: {n:4} tokens, {seconds * 1e3:6.0f} ms")
            await asyncio.sleep(_EVERY_S * (0.5 + 0.618 * len(mine) % 1.0))  # at ever other moments of a slice
        background.stop()
        await asyncio.gather(prefill, *answers)
        return found, books(background.dones, mine, before, await self._mine.counts())


def books(background: Sequence[Done], mine: Sequence[Done], before: dict[str, int], after: dict[str, int]) -> Any:
    """What was asked of the daemon, and what it says it did."""
    return {
        "background_calls": len(background),
        "background_paused": sum(done.n_paused for done in background),
        "background_recomputed": sum(done.switch.recomputed for done in background),
        "asked_tokens": sum(done.n_prompt for done in (*background, *mine)),
        "prefilled_tokens": after["tokens_prefilled"] - before["tokens_prefilled"],
        "recomputed_tokens": after["tokens_recomputed"] - before["tokens_recomputed"],
    }


async def converse(
    options: Options, socket: Path, texts: Texts, n_long: int, sizes: Sequence[int], rounds: int, most: int
) -> list[Any]:
    async with AsyncExitStack() as parts:
        doors = []
        for i in range(2 + _DECODES):
            client = await AsyncClient.connect(socket, app=f"bench{i}")
            doors.append(Over(await parts.enter_async_context(client)))
        house = House(doors, texts)
        ways: dict[str, dict[int, list[float]]] = {way: {n: [] for n in sizes} for way in ("idle", "urgent", "equal")}
        accounts: dict[str, list[Any]] = {"urgent": [], "equal": []}
        for i in range(rounds):
            for n in sizes:
                ways["idle"][n] += await house.idle(n, 5)
            for way, terms, others in (("urgent", URGENT, BACKGROUND), ("equal", NORMAL, NORMAL)):
                say(f"round {i}: {way}, while {n_long} tokens are prefilled")
                found, account = await house.busy(n_long, sizes, terms, others, most)
                accounts[way].append(account)
                for n in sizes:
                    ways[way][n] += found[n]
        return [rows(ways, sizes), accounts]


def rows(ways: dict[str, dict[int, list[float]]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """By size of the prompt: ``over_idle_ms`` is the median's distance from the idle daemon's."""
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
    with engine(options, 256) as thread:  # for its tokenizer
        texts = Texts(thread.engine, _TEXT, options.seed)
        model = thread.engine.info.name
        with daemon(options, "daemon", endless=True) as (socket, _):
            found, accounts = asyncio.run(converse(options, socket, texts, n_long, sizes, rounds, most))
    target = PlannerChoices().step_target
    figures = {"prefill_tokens": n_long, "decodes": _DECODES, "step_target_s": target, "prompts": found}
    figures["books"] = accounts
    return Result(model, figures, bars(found, accounts, target))


def bars(rows: Sequence[dict[str, Any]], accounts: dict[str, list[Any]], step_target: float) -> list[Bar]:
    """A short request may wait for two slices; whatever is computed once must not be computed again."""
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
