"""A context moves while it is answered: whoever asked sees one answer, without a token too many or too few."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.transfer_messages import Import
from llmaas.calls import Done, Logprobs, Sampling, Terms
from llmaas.clock import RealClock
from llmaas.errors import Cancelled, ContextExists, MachineError, NodeUnreachable
from llmaas.nodes.cluster.daemon_facts import read_facts
from llmaas.nodes.cluster.speed import NodeSpeed
from llmaas.nodes.remote_answer import told
from llmaas.records import AppId
from tests.nodes.test_moving import move, names, said, talk
from tests.support.loop import on_a_loop
from tests.support.node_house import SOON, House, phone_and_desk

GREEDY = Sampling()
TOP = {"token": 5, "text": "x", "logprob": -1.0}
N = 90
RATE = 120.0
"""Tokens a second, so that the move comes in the middle."""


def app_of(house: House) -> AppId:
    return AppId(f"{os.geteuid()}/mail")


class Asked:
    """An answer that is under way."""

    def __init__(
        self,
        house: House,
        context: str = "x",
        rate: float | None = RATE,
        sampling: Sampling = GREEDY,
        logprobs: int | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[Logprobs] = []
        self.text = ""
        self.begun = asyncio.Event()
        self._stop = asyncio.Event()
        self.task = asyncio.create_task(self._ask(house, context, rate, sampling, logprobs))

    async def _ask(
        self, house: House, context: str, rate: float | None, sampling: Sampling, logprobs: int | None
    ) -> Done:
        async with house.daemon.connect("mail") as client:
            terms = Terms(rate=rate)
            stream = client.generate(
                context, "tell me all of it", max_tokens=N, terms=terms, sampling=sampling, logprobs=logprobs
            )
            async for piece in stream:
                self.text += piece.text
                self.tokens += piece.tokens
                self.logprobs += piece.logprobs or ()
                if len(self.tokens) >= 20:
                    self.begun.set()
                if self._stop.is_set():
                    await stream.cancel()
            return await stream.done()

    def stop(self) -> None:
        self._stop.set()

    async def end(self) -> Done:
        return await asyncio.wait_for(self.task, SOON)


async def unmoved(house: House, sampling: Sampling = GREEDY) -> Asked:
    """The same answer, of a conversation that is alike."""
    await talk(house, "twin")
    asked = Asked(house, "twin", None, sampling)
    await asked.end()
    return asked


@on_a_loop
async def test_chunks_that_came_ahead_stay_when_nothing_more_comes_with_the_context(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        async with phone.daemon.service.transfers.departures.departure(app_of(phone), "x") as ahead:
            about = await ahead.chunks((), 0, 1 << 20)
            page = await ahead.chunks(tuple(range(about.n_kv // 64)), 0, 1 << 20)
        moves = desk.daemon.service.transfers.arrivals
        asked = Import(ahead.exported)
        staged = await moves.stage("ab" * 16, "node", app_of(desk), asked)
        await moves.take_staged(staged.id, about.root, about.kv, ())
        took = await moves.take_staged(staged.id, about.root, about.kv, page.pieces)
        assert took.taken == len(page.pieces) > 3
        info = await moves.arrive("ab" * 16, "node", app_of(desk), asked)
        await moves.unstage(staged.id)
        async with desk.daemon.connect("mail") as client:
            stream = client.generate(info.id, "and?", max_tokens=5)
            switch = (await stream.done()).switch
        assert switch.disk + switch.pool + switch.cells >= 64 * took.taken


async def again(house: House) -> Any:
    async with house.daemon.connect("mail") as client:
        return await client.ask("twin", "and?", max_tokens=5)


async def until_nothing_waits(house: House) -> None:
    """What came ahead of a context is gone."""
    for _ in range(400):
        if all("move-" not in info.name for info in house.daemon.service.contexts(None)):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it waits yet")


async def begun(house: House, sampling: Sampling = GREEDY) -> Asked:
    asked = Asked(house, sampling=sampling)
    await asyncio.wait_for(asked.begun.wait(), SOON)
    return asked


@on_a_loop
async def test_the_answer_goes_on_there_and_is_told_here_as_if_nothing_had_moved(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        other = await unmoved(phone)
        asked = await begun(phone)
        moved = await move(phone)
        assert len(asked.tokens) < N, "it had not ended before"
        assert moved.n_tokens > 0 and await names(desk) == ["x"]
        assert desk.cut.seen.count("offer") == 1 and "stage" in desk.cut.seen, "all of it went ahead"
        assert moved.n_chunks > 3 and "grow" in desk.cut.seen, "chunks once, then what was drawn"
        after = desk.cut.seen[desk.cut.seen.index("take") :]
        assert after[:2] == ["take", "go_on"], "nothing is done before the answer goes on"
        done = await asked.end()
        assert (asked.text, asked.tokens) == (other.text, other.tokens)
        assert (done.n_generated, done.n_kept, len(asked.tokens)) == (N, N, N)
        assert "go_on" in desk.cut.seen
        assert (await said(desk))[-1].content == asked.text
        async with desk.daemon.connect("mail") as client:
            assert (await client.contexts())[0].n_tokens == done.n_tokens
        assert await names(phone) == ["twin"]
        await until_nothing_waits(desk)
        async with desk.daemon.connect("mail") as client:
            assert (await client.ask("x", "and?", max_tokens=5)) == (await again(phone))


@on_a_loop
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.2, seed=7, repeat_penalty=1.3),
        Sampling(grammar='root ::= ("one " | "two " | "and three "){40,99}'),
        Sampling(temperature=0.9, seed=3, json_schema='{"type": "array", "items": {"enum": [1, 2]}, "minItems": 99}'),
    ],
    ids=["drawn by chance", "by a grammar", "by a schema, by chance"],
)
async def test_sampler_and_grammar_go_with_the_answer(tmp_path: Path, sampling: Sampling) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        other = await unmoved(phone, sampling)
        asked = await begun(phone, sampling)
        await move(phone)
        assert len(asked.tokens) < N, "it had not ended before"
        await asked.end()
        assert (asked.text, asked.tokens) == (other.text, other.tokens)
        assert "go_on" in desk.cut.seen and len(asked.tokens) == N, "the whole answer"


@on_a_loop
async def test_log_probabilities_are_told_of_every_token_also_where_it_goes_on_here(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        await talk(phone, "twin")
        other = Asked(phone, "twin", None, logprobs=2)
        await other.end()
        asked = Asked(phone, logprobs=2)
        await asyncio.wait_for(asked.begun.wait(), SOON)
        desk.cut.arm("spans", after=False)
        with pytest.raises(NodeUnreachable):
            await move(phone)
        await move(phone)
        assert len(asked.tokens) < N, "it had not ended before"
        await asked.end()
        assert "go_on" in desk.cut.seen
        assert (asked.text, [each.token for each in asked.logprobs]) == (other.text, asked.tokens)
        assert asked.logprobs == other.logprobs and {len(each.top) for each in asked.logprobs} == {2}


@pytest.mark.parametrize(
    "frame",
    [
        {"tokens": [5]},
        {"tokens": [5], "logprobs": [{"token": 6, "text": "x", "logprob": -1.0, "top": []}]},
        {"tokens": [5], "logprobs": [{"token": 5, "text": "x", "logprob": -1.0, "top": [TOP, TOP]}]},
        {"tokens": [5], "logprobs": [{"token": 5, "text": 7, "logprob": -1.0, "top": []}]},
        {"tokens": [5], "logprobs": 3},
        {"tokens": "x", "logprobs": []},
        {"tokens": None},
    ],
)
def test_log_probabilities_that_are_not_those_of_the_tokens_are_refused(frame: dict[str, Any]) -> None:
    with pytest.raises(MachineError, match="node desk"):
        told("desk", frame, 1)


@on_a_loop
async def test_there_and_back_and_there_again_in_one_answer(tmp_path: Path) -> None:
    """The desk's part of the answer is a call of its own, which moves as any other does."""
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        other = await unmoved(phone)
        asked = await begun(phone)
        await move(phone)
        while len(asked.tokens) < 50:
            await asyncio.sleep(0.01)
        await move(desk, node="phone")
        await asked.end()
        assert (asked.text, asked.tokens) == (other.text, other.tokens)
        assert (await said(phone))[-1].content == asked.text and await names(desk) == []


@pytest.mark.parametrize("why", ["taken", "cut before", "cut in the middle"])
@on_a_loop
async def test_where_it_does_not_move_the_answer_goes_on_here(tmp_path: Path, why: str) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        other = await unmoved(phone)
        if why == "taken":
            await talk(desk, n_turns=1)
        else:
            desk.cut.arm("offer" if why == "cut before" else "spans", after=False)
        asked = await begun(phone)
        with pytest.raises((ContextExists, NodeUnreachable)):
            await move(phone)
        await until_nothing_waits(desk)
        done = await asked.end()
        assert (asked.text, asked.tokens, done.n_generated) == (other.text, other.tokens, N)
        assert (await said(phone))[-1].content == asked.text


@on_a_loop
async def test_if_the_other_node_is_lost_in_the_middle_what_was_told_is_kept_there(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        asked = await begun(phone)
        desk.cut.arm("go_on", after=False)
        await move(phone)
        with pytest.raises(NodeUnreachable):
            await asked.end()
        kept = (await said(desk))[-1]
        assert kept.role == "assistant" and kept.content and kept.content.startswith(asked.text)
        assert await names(phone) == []


@on_a_loop
async def test_whoever_asked_can_still_cancel(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk):
        await talk(phone)
        asked = await begun(phone)
        await move(phone)
        while len(asked.tokens) < 40:
            await asyncio.sleep(0.01)
        asked.stop()
        with pytest.raises(Cancelled):
            await asked.end()
        for _ in range(400):
            if not desk.daemon.service.stats(apps=False)["requests"]["active"]:  # type: ignore[index]
                break
            await asyncio.sleep(0.02)
        told: Any = (await said(desk))[-1]
        assert told.content.startswith(asked.text[:40]) and len(asked.tokens) < N


async def movable(house: House) -> tuple[tuple[str, str, int], ...]:
    """The answers that placement may have go on elsewhere, as an agent of the house's daemon reports them."""
    async with house.daemon.connect("operator", admin=True) as client:
        return (await read_facts(client, NodeSpeed(), None, RealClock())).answering


@on_a_loop
async def test_an_agent_reports_only_answers_that_go_on_elsewhere(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, _):
        await talk(phone)
        assert await movable(phone) == ()
        asked = Asked(phone, rate=20.0)
        await asked.begun.wait()
        ((app, name, n_tokens),) = await movable(phone)
        assert (app, name) == ("mail", "x") and n_tokens > 0
        asked.stop()
        with pytest.raises(Cancelled):
            await asked.end()


@on_a_loop
async def test_an_answer_with_stop_strings_ends_before_its_context_moves(tmp_path: Path) -> None:
    async with phone_and_desk(tmp_path) as (phone, desk), phone.daemon.connect("mail") as client:
        await talk(phone)
        stream = client.generate("x", "more", max_tokens=40, stop=["\0never"], terms=Terms(rate=RATE))
        pieces = [await stream.__anext__()]
        assert await movable(phone) == ()
        moving = asyncio.create_task(move(phone))
        pieces += [piece async for piece in stream]
        assert (await stream.done()).n_generated == 40
        await moving
        assert "go_on" not in desk.cut.seen
        assert (await said(desk))[-1].content == "".join(piece.text for piece in pieces)
