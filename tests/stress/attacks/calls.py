"""Attacks by calls: many, urgent, long, hinted, cancelled, with grammars."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

from tests.stress.attacks.peer import Attacker, Peer, context

TEXT = "the quick brown fox " * 5


async def _keep_asking(peer: Peer, made: str, **fields: Any) -> None:
    while True:
        fate = await peer.ask("generate", context=made, prompt=TEXT, **fields)
        if fate["type"] == "failed":
            await asyncio.sleep(0.01)
            if fate["code"] == "context_too_long":
                await peer.ask("truncate", context=made, n_tokens=0)


async def _many_calls(attacker: Attacker, n: int, apps: int = 1, **fields: Any) -> None:
    """``n`` calls that wait or run at any time, each of its own context and on its own connection."""
    peers = await attacker.connect_many(n, apps)
    contexts = await asyncio.gather(*(context(peer) for peer in peers))
    await asyncio.gather(*(_keep_asking(*pair, **fields) for pair in zip(peers, contexts, strict=True)))


async def queued_calls(attacker: Attacker) -> None:
    """64 calls of one app that wait or run, at any time."""
    await _many_calls(attacker, 60, max_tokens=64)


async def queued_calls_of_many(attacker: Attacker) -> None:
    """200 calls under 10 names."""
    await _many_calls(attacker, 200, apps=10, max_tokens=64)


async def urgent_calls(attacker: Attacker) -> None:
    """60 calls of priority 0, at any time."""
    await _many_calls(attacker, 60, max_tokens=64, priority=0)


async def long_answers(attacker: Attacker) -> None:
    """32 answers of 1,000 tokens, as the context shifts."""
    await _many_calls(attacker, 32, max_tokens=1000, on_full="shift")


async def slow_answers(attacker: Attacker) -> None:
    """60 answers that may have a token in a thousand seconds."""
    await _many_calls(attacker, 60, max_tokens=64, rate=0.001)


async def costly_sampling(attacker: Attacker) -> None:
    """Answers with log probabilities, penalties, and sixteen stop strings of 1,024 letters that nearly come."""
    stops = [("the quick brown fox " * 60)[:1023] + chr(97 + i) for i in range(16)]
    options: dict[str, Any] = {"logprobs": 20, "repeat_penalty": 1.5, "penalty_last_n": 4096, "temperature": 1.0}
    await _many_calls(attacker, 16, max_tokens=64, stop=stops, **options)


async def hints(attacker: Attacker) -> None:
    """Hints for thirty contexts, again and again, hundreds a second."""
    peer = await attacker.connect()
    made = [await context(peer, TEXT) for _ in range(30)]
    attacker.begin()
    while True:
        for each in made:
            await peer.ask("hint", context=each)


async def hints_of_the_gone(attacker: Attacker) -> None:
    """Hints for thirty contexts, whose sender goes at once."""
    peer = await attacker.connect()
    made = [await context(peer, TEXT) for _ in range(30)]
    attacker.begin()
    while True:
        other = await attacker.connect()
        for each in made:
            await other.request("hint", context=each)
        other.close()
        await peer.ask("ping")


async def cancels(attacker: Attacker) -> None:
    """Calls that are cancelled at once, and cancels of what never was."""
    peer = await attacker.connect()
    made = [await context(peer) for _ in range(8)]
    for each in itertools.cycle(made):
        call = await peer.request("generate", context=each, prompt=TEXT, max_tokens=500)
        await peer.request("cancel", request=call)
        for nobody in range(10_000, 10_020):
            await peer.request("cancel", request=nobody)
        await peer.ended(call)


async def priorities(attacker: Attacker) -> None:
    """A long answer whose priority changes as fast as it goes."""
    peer = await attacker.connect()
    made = await context(peer)
    call = await peer.request("generate", context=made, prompt=TEXT, max_tokens=8000)
    for priority in itertools.cycle(range(10)):
        reply = await peer.ask("prioritize", request=call, priority=priority)
        if reply["type"] == "failed":
            return


async def short_deadlines(attacker: Attacker) -> None:
    """Calls whose deadline passes before they begin."""
    await _many_calls(attacker, 32, max_tokens=64, deadline_s=1e-6)


async def _constrained(attacker: Attacker, *constraints: dict[str, str]) -> None:
    peers = await attacker.connect_many(8)
    contexts = await asyncio.gather(*(context(peer) for peer in peers))

    async def ask(peer: Peer, made: str) -> None:
        while True:
            for constraint in constraints:
                await peer.ask("generate", context=made, prompt="x", max_tokens=4, temperature=1.0, **constraint)
            await peer.ask("truncate", context=made, n_tokens=0)

    await asyncio.gather(*(ask(*pair) for pair in zip(peers, contexts, strict=True)))


async def repeating_grammars(attacker: Attacker) -> None:
    """Grammars of 64 KB of `[a]{0,2000}`, in a row and nested."""
    row = ("root ::= " + "[a]{0,2000} " * 5400)[:65_000]
    nested = "root ::= " + "(" * 50 + "[a]" + "{0,2000})" * 50
    await _constrained(attacker, {"grammar": row}, {"grammar": nested}, {"grammar": 'root ::= ("a"? "a"?)* "b"'})


async def bracket_patterns(attacker: Attacker) -> None:
    """Schemas whose pattern is 14 KB of `[`, and others that make readers of patterns go back and forth."""
    patterns = ["^" + "[" * 14_000 + "$", "^" + "(a" * 5000 + ")*" * 5000 + "$", "^((a{1,300}){1,300}){1,300}$"]
    await _constrained(
        attacker, *({"json_schema": json.dumps({"type": "string", "pattern": pattern})} for pattern in patterns)
    )


async def nested_references(attacker: Attacker) -> None:
    """Schemas of 4 KB in which each definition names the next one twice, or itself."""
    bomb = {
        "$defs": {
            f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"items": {"$ref": f"#/$defs/d{i + 1}"}}]}
            for i in range(40)
        }
        | {"d40": {"type": "null"}},
        "$ref": "#/$defs/d0",
    }
    circle = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    await _constrained(attacker, *({"json_schema": json.dumps(schema)} for schema in (bomb, circle, deep)))


async def fresh_grammars(attacker: Attacker) -> None:
    """A new grammar for every call, so that none is found ready."""
    peers = await attacker.connect_many(16)
    contexts = await asyncio.gather(*(context(peer) for peer in peers))
    numbers = itertools.count()

    async def ask(peer: Peer, made: str) -> None:
        while True:
            words = " | ".join(f'"word{next(numbers)}"' for _ in range(2000))
            grammar = f"root ::= {words}"
            await peer.ask("generate", context=made, prompt="x", max_tokens=4, grammar=grammar)
            await peer.ask("truncate", context=made, n_tokens=0)

    await asyncio.gather(*(ask(*pair) for pair in zip(peers, contexts, strict=True)))
