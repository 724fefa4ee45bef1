"""Requests with an idempotency key: carried out once however often they are made, and told as they are stored."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmaas import errors
from llmaas.calls import CallSpec, Done, FinishReason, Generation, Piece, Sampling, SwitchReport, Terms, Turn
from llmaas.records import ContextId, Message
from llmaas.service.keyed_turns import ToldTurn, digest, pieces, seeded
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

SLOW = {"step_time": lambda n: 0.002}
TEXT = "All happy families are alike; every unhappy family is unhappy in its own way. "


def spec(text: str = "hello", n: int = 30, key: str | None = "k", **options: Any) -> CallSpec:
    once = {name: options.pop(name) for name in ("if_n_tokens", "terms") if name in options}
    return CallSpec(Turn((Message("user", text),)), Generation(n, **options), idempotency_key=key, **once)


async def ask(h: House, asked: CallSpec, context: str = "x") -> tuple[list[Piece], Done]:
    told: list[Piece] = []
    _, future = h.service.submit(APP, context, asked, told.append)
    return told, await future


async def cut_short(h: House, asked: CallSpec, after: int = 5) -> tuple[str, errors.Cancelled]:
    """Cancel the request when so many tokens have been told; what was told, and its error."""
    told: list[Piece] = []
    request, future = h.service.submit(APP, "x", asked, told.append)
    while len(tokens(told)) < after and not future.done():
        await asyncio.sleep(0.001)
    h.service.cancel(request)
    with pytest.raises(errors.Cancelled) as caught:
        await future
    return text(told), caught.value


async def cut_with_the_last_token(h: House, asked: CallSpec, told: list[Piece]) -> None:
    def emit(piece: Piece) -> None:
        told.append(piece)
        if len(tokens(told)) == asked.max_new:
            h.service.cancel(request)

    request, future = h.service.submit(APP, "x", asked, emit)
    with contextlib.suppress(errors.Cancelled):
        await future


def text(told: list[Piece]) -> str:
    return "".join(piece.text for piece in told)


def tokens(told: list[Piece]) -> list[int]:
    return [token for piece in told for token in piece.tokens]


async def said(h: House, context: str = "x") -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in (await h.shown(context)).messages]


def told_again(h: House) -> int:
    calls = h.service.stats()["calls"]
    assert isinstance(calls, dict)
    return int(calls.get("told_again", 0))


@on_a_loop
async def test_a_request_that_was_done_is_told_again_also_after_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        first = await ask(h, spec())
        stored = h.tokens("x")
        again = await ask(h, spec(terms=Terms(priority=8, deadline_s=60.0)))
        assert (text(again[0]), tokens(again[0]), again[1]) == (text(first[0]), tokens(first[0]), first[1])
        assert h.tokens("x") == stored and told_again(h) == 1
        appended = await h.call("x", Turn((Message("user", "more"),)), None)
        assert appended[1].reason is FinishReason.APPENDED
    async with house(tmp_path) as h:
        again = await ask(h, spec())
        assert (text(again[0]), tokens(again[0]), again[1]) == (text(first[0]), tokens(first[0]), first[1])
        assert await said(h) == [
            ("system", "Be brief."),
            ("user", "hello"),
            ("assistant", text(first[0])),
            ("user", "more"),
        ]


@on_a_loop
async def test_an_append_is_done_once(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        append = CallSpec(Turn((Message("user", "a fact"),)), None, idempotency_key="k")
        first, again = (await ask(h, append))[1], (await ask(h, append))[1]
        assert first == again and first.reason is FinishReason.APPENDED
        assert await said(h) == [("user", "a fact")]
        raw = CallSpec(Turn(prompt="raw text"), Generation(4), idempotency_key="raw")
        assert (await ask(h, raw))[1] == (await ask(h, raw))[1]
        assert await said(h) == [("user", "a fact")]


@pytest.mark.parametrize("restart", [False, True])
@on_a_loop
async def test_an_interrupted_answer_goes_on_from_where_it_was(tmp_path: Path, restart: bool) -> None:
    asked = spec(n=60)
    async with house(tmp_path / "whole") as h:
        await h.service.create(APP, name="x", system=None)
        await ask(h, spec(TEXT, key="first"))
        expected, whole = await ask(h, asked)
    async with house(tmp_path / "cut", engine=SLOW) as h:
        await h.service.create(APP, name="x", system=None)
        await ask(h, spec(TEXT, key="first"))
        _, error = await cut_short(h, asked)
        assert error.n_generated >= 5 and error.n_tokens == len(h.tokens("x"))
        part, error = await cut_short(h, asked, after=error.n_generated + 1)
        assert error.n_tokens == len(h.tokens("x"))
        if not restart:
            told, done = await ask(h, asked)
            assert (await said(h))[2:] == [("user", "hello"), ("assistant", text(told))]
    async with house(tmp_path / "cut") as h:
        if restart:
            told, done = await ask(h, asked)
        assert text(told).startswith(part) and (text(told), tokens(told)) == (text(expected), tokens(expected))
        assert (await said(h))[2:] == [("user", "hello"), ("assistant", text(told))]
        assert len(h.tokens("x")) == done.n_tokens
        assert await ask(h, asked) == ([*pieces(ToldTurn(done, text(told), tuple(tokens(told))))], done)
    fields = ("reason", "n_tokens", "n_prompt", "n_generated", "n_kept", "stop", "n_dropped")
    assert [getattr(done, name) for name in fields] == [getattr(whole, name) for name in fields]


@on_a_loop
async def test_an_interrupted_answer_that_fails_again_stays_as_it_was(tmp_path: Path) -> None:
    async with house(tmp_path, engine=SLOW) as h:
        await h.service.create(APP, name="x", system=None)
        part, _ = await cut_short(h, spec(n=200))
        before, shown = h.tokens("x"), await said(h)
        with pytest.raises(errors.Conflict) as caught:
            await ask(h, spec(n=200, if_n_tokens=len(before)))
        assert caught.value.n_tokens == 0, "as the context was before the turn"
        request, future = h.service.submit(APP, "x", spec(n=200), lambda piece: None)
        await asyncio.sleep(0)
        h.service.cancel(request)
        with pytest.raises(errors.Cancelled):
            await future
        assert (h.tokens("x"), await said(h)) == (before, shown) and shown[-1][1].startswith(part)
        told, done = await ask(h, spec(n=200, if_n_tokens=0))
        assert text(told).startswith(part) and (await said(h))[-1][1] == text(told)
        assert done.n_generated == len(tokens(told))


@on_a_loop
async def test_an_interrupted_answer_keeps_its_stop_strings_and_its_limit(tmp_path: Path) -> None:
    async with house(tmp_path / "whole") as h:
        await h.service.create(APP, name="x", system=None)
        whole, _ = await ask(h, spec(n=60))
    at = len(text(whole)) * 3 // 4
    stop = text(whole)[at : at + 5]
    assert stop not in text(whole)[:at]
    asked = spec(n=60, stop=(stop,))
    async with house(tmp_path / "cut", engine={"step_time": lambda n: 0.01}) as h:
        await h.service.create(APP, name="x", system=None)
        await cut_short(h, asked)
        told, done = await ask(h, asked)
        assert text(told) == text(whole)[:at] == (await said(h))[-1][1] and done.stop == stop
        assert (text((await ask(h, asked))[0]), (await ask(h, asked))[1]) == (text(told), done)
        _, error = await cut_short(h, spec("again", n=80, key="b"), after=1)
        told, done = await ask(h, spec("again", n=80, key="b"))
        assert error.n_generated < done.n_generated == len(tokens(told)) == 80


@on_a_loop
async def test_an_answer_that_is_cancelled_with_its_last_token_is_whole(tmp_path: Path) -> None:
    async with house(tmp_path, engine=SLOW) as h:
        await h.service.create(APP, name="x", system=None)
        for i in range(10):
            asked, told = spec(f"{i}", n=4, key=f"{i}", sampling=Sampling(temperature=1.0)), list[Piece]()

            await cut_with_the_last_token(h, asked, told)
            again, done = await ask(h, asked)
            assert tokens(again) == tokens(told) and done.reason is FinishReason.LENGTH
            assert (await said(h))[-1] == ("assistant", text(again)) and done.n_tokens == len(h.tokens("x"))


@on_a_loop
async def test_an_answer_by_a_grammar_begins_anew(tmp_path: Path) -> None:
    async with house(tmp_path, engine=SLOW) as h:
        await h.service.create(APP, name="x", system=None)
        asked = spec(n=60, sampling=Sampling(grammar="root ::= [a-z]{40}"))
        await cut_short(h, asked)
        told, done = await ask(h, asked)
        assert len(text(told)) == 40 and await said(h) == [("user", "hello"), ("assistant", text(told))]
        assert len(h.tokens("x")) == done.n_tokens


@on_a_loop
async def test_an_interrupted_turn_that_others_followed_is_not_made_again(tmp_path: Path) -> None:
    async with house(tmp_path, engine=SLOW) as h:
        await h.service.create(APP, name="x", system=None)
        await cut_short(h, spec(n=200))
        await ask(h, spec("something else", key=None))
        before = await said(h)
        with pytest.raises(errors.Conflict, match="gone on") as caught:
            await ask(h, spec(n=200))
        assert caught.value.n_tokens == len(h.tokens("x")) and await said(h) == before


@on_a_loop
async def test_a_key_is_for_one_request(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        for name in ("x", "y"):
            await h.service.create(APP, name=name, system=None)
        await ask(h, spec())
        for other in (spec("hullo"), spec(n=31), spec(stop=("q",)), replace(spec(), generation=None)):
            with pytest.raises(errors.KeyReused):
                await ask(h, other)
        with pytest.raises(errors.KeyReused):
            await ask(h, spec(terms=Terms(adapter="")))
        assert len(await said(h)) == 2
        assert text((await ask(h, spec(), "y"))[0]), "a key belongs to its context"
        assert len(await said(h, "y")) == 2


@on_a_loop
async def test_the_same_request_twice_at_once_is_done_once(tmp_path: Path) -> None:
    async with house(tmp_path, engine=SLOW) as h:
        await h.service.create(APP, name="x", system=None)
        answers = await asyncio.gather(*(ask(h, spec()) for _ in range(4)))
        assert len({text(told) for told, _ in answers}) == 1
        assert len(await said(h)) == 2 and told_again(h) == 3


@on_a_loop
async def test_a_request_is_for_a_context_of_the_length_that_it_says(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        n = len(h.tokens("x"))
        with pytest.raises(errors.Conflict, match=f"{n} tokens, not {n + 1}") as caught:
            await ask(h, spec(if_n_tokens=n + 1))
        assert caught.value.n_tokens == n == len(h.tokens("x"))
        _, done = await ask(h, spec(if_n_tokens=n))
        assert (await ask(h, spec(if_n_tokens=n)))[1] == done, "it was done: that is not asked any more"
        with pytest.raises(errors.Conflict):
            await ask(h, spec(key=None, if_n_tokens=n))
        await ask(h, spec(key=None, if_n_tokens=done.n_tokens))


@on_a_loop
async def test_keys_go_with_what_was_taken_back_and_are_not_a_forks(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        _, first = await ask(h, spec("one", key="1"))
        await ask(h, spec("two", key="2"))
        await h.service.fork(APP, "x", name="y")
        await ask(h, spec("two", key="2"), "y")
        assert [message for _, message in await said(h, "y")].count("two") == 2
        await h.service.truncate(APP, "x", n_tokens=None, n_messages=2)
        assert (await ask(h, spec("one", key="1")))[1] == first
        await ask(h, spec("two", key="2"))
        assert [role for role, _ in await said(h)] == ["user", "assistant"] * 2


@on_a_loop
async def test_after_an_error_a_key_is_as_if_it_had_never_been_used(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 256}) as h:
        await h.service.create(APP, name="x", system=None)
        with pytest.raises(errors.ContextTooLong):
            await ask(h, spec(TEXT * 40))
        assert len((await ask(h, spec()))[0]) and len(await said(h)) == 2


def test_a_key_gives_a_seed_where_there_is_none() -> None:
    drawn = spec(sampling=Sampling(temperature=1.0))
    assert seeded(drawn) == seeded(drawn) != seeded(replace(drawn, idempotency_key="other"))
    for given in (spec(sampling=Sampling(seed=3)), spec(key=None), replace(spec(), generation=None)):
        assert seeded(given) == given


def test_a_digest_says_what_is_asked_and_not_on_what_terms() -> None:
    assert digest(spec()) == digest(spec(key="other", terms=Terms(priority=1, rate=3.0), if_n_tokens=4))
    others = [spec("hullo"), spec(n=4), spec(sampling=Sampling(top_k=3)), spec(stop=("a",)), spec(stop=("a", "b"))]
    others += [replace(spec(), turn=Turn(prompt="hello")), replace(spec(), turn=Turn(prompt="hello", special=False))]
    assert len({digest(each) for each in [spec(), *others]}) == 8


def test_a_long_answer_is_told_again_in_pieces_of_bounded_size() -> None:
    done = Done(ContextId("c"), FinishReason.STOP, 1, 1, 9000, SwitchReport(), 0.0, 0.0, 0.0)
    told = [*pieces(ToldTurn(done, "ab" * 30_000, tuple(range(9000))))]
    assert (text(told), tokens(told)) == ("ab" * 30_000, list(range(9000)))
    assert max(len(piece.text) for piece in told) <= 16384 and max(len(piece.tokens) for piece in told) <= 4096
    assert [*pieces(ToldTurn(done, "", ()))] == []
    assert len([*pieces(ToldTurn(done, "", (1, 2)))]) == 1


@pytest.mark.parametrize(
    "wrong", [{"key": ""}, {"key": "a" * 129}, {"key": "a\n"}, {"logprobs": 2}, {"if_n_tokens": -1}]
)
def test_what_is_out_of_bounds_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"idempotency_key|if_n_tokens"):
        spec(**wrong)
