"""All but the newest tokens of an answered context goes ahead of it, in rounds."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llmaas.api.transfer_records import ChunkPiece, ExportedChunks
from llmaas.clock import ManualClock
from llmaas.errors import ModelMismatch, NodeUnreachable
from llmaas.nodes.staged_move import StagedMove, guessed_costs
from llmaas.policies.migration import MOST_ROUNDS
from llmaas.records import CHUNK_TOKENS, TOKEN_BYTES, ContextSpan, ExportedContext
from tests.support.loop import on_a_loop

N = 200
"""Tokens that were there before the answer began: three full chunks and a part of one."""
DATA = bytes(1000)
"""Of a chunk."""


def packed(*tokens: int) -> bytes:
    return b"".join(token.to_bytes(TOKEN_BYTES, "little") for token in tokens)


class Growing:
    """A context whose answer grows while the other node works, by ``speed`` tokens a second. ``n``: tokens that were
    there before."""

    def __init__(self, clock: ManualClock, speed: float, n: int) -> None:
        self._clock, self._speed, self._began, self._n = clock, speed, clock.now(), n
        self.spans = (ContextSpan(packed(*range(n)), "user", "hello"),)
        self.exported = ExportedContext("x", "m", "v", self.spans)
        self.adapter, self.ttl = "", None

    @property
    def answer(self) -> bytes:
        return packed(*range(1000, 1000 + int(self._speed * (self._clock.now() - self._began))))

    def tokens_from(self, n_tokens: int) -> bytes:
        return (self.spans[0].tokens + self.answer)[TOKEN_BYTES * n_tokens :]

    async def chunks(self, indices: tuple[int, ...], offset: int, n_bytes: int) -> ExportedChunks:
        pieces = tuple(ChunkPiece(i, len(DATA), DATA, 0, b"") for i in indices[:1])  # a page holds one
        return ExportedChunks(bytes(16), bytes(16), self._n, pieces, len(pieces), 0)

    def final(self, *answers: ContextSpan) -> ExportedContext:
        return ExportedContext("x", "m", "v", (*self.spans, *answers))


class Other:
    """The other node. Computing takes it ``step_s``, and ``token_s`` for each token."""

    name = "desk"

    def __init__(self, clock: ManualClock, step_s: float, token_s: float, n: int) -> None:
        self._clock, self._step_s, self._token_s, self._n = clock, step_s, token_s, n
        self.asked: list[dict[str, Any]] = []
        self.fails: dict[str, Exception] = {}
        self.says: dict[str, Any] = {}
        """Instead of what it would."""
        self.chunk_s, self.compute_s, self.n_there, self.most = 0.001, 1.0, 0, 1 << 20
        """What a chunk takes on the way, and the whole context to compute; tokens in cells, and most of a round."""
        self.meanwhile_s = math.inf
        """What a token takes that is computed while chunks come."""
        self._since: float | None = None

    async def post(self, op: str, **fields: Any) -> None:
        self.asked.append({"op": op, **fields})

    async def reply(self, seconds: float = 0.0) -> dict[str, Any]:
        asked = self.asked[-1]
        if (error := self.fails.get(asked["op"])) is not None:
            raise error
        if asked["op"] == "stage":
            return {"compute_s": self.compute_s, **self.says}
        if asked["op"] == "chunks" and asked["pieces"]:
            self._clock.advance(self.chunk_s)
            if asked["computes"] and self._since is None:
                self._since = self._clock.now()
        if asked["op"] == "grow" and self.front:
            self._clock.advance(max(0, CHUNK_TOKENS * min(self.sent) - self.front) * self.meanwhile_s)
            self.n_there, self._since = self._n, None
        if asked["op"] == "grow":
            n = len(asked["tokens"]) // TOKEN_BYTES
            self._clock.advance(self._step_s + self._token_s * n)
            self.n_there = min(
                self.n_there + self.most, self._n + sum(len(a["tokens"]) // TOKEN_BYTES for a in self.of("grow"))
            )
            return {"n_cells": self.n_there, **self.says}
        missing = sorted({*range(self._n // CHUNK_TOKENS)} - {*self.sent}) if not asked.get("pieces") else []
        taken = {"taken": len(asked.get("pieces", ())), "known": 0, "refused": 0, "usable": True, "missing": missing}
        return {**taken, "n_cells": self.front, **self.says} if asked["op"] == "chunks" else taken

    @property
    def front(self) -> int:
        """Tokens that were computed while chunks came."""
        return 0 if self._since is None else min(self._n, int((self._clock.now() - self._since) / self.meanwhile_s))

    @property
    def now(self) -> float:
        return self._clock.now()

    @property
    def sent(self) -> list[int]:
        return [piece["index"] for asked in self.of("chunks") for piece in asked["pieces"]]

    def of(self, op: str) -> list[dict[str, Any]]:
        return [asked for asked in self.asked if asked["op"] == op]


def staged(speed: float, step_s: float = 0.02, token_s: float = 0.002, n: int = N) -> tuple[StagedMove, Growing, Other]:
    clock = ManualClock()
    context, other = Growing(clock, speed, n), Other(clock, step_s, token_s, n)
    return StagedMove(other, context, guessed_costs(), clock), context, other  # type: ignore[arg-type]


@on_a_loop
async def test_chunks_go_once_and_then_only_new_tokens() -> None:
    move, context, other = staged(speed=30.0, step_s=0.5)
    assert await move.bring("mail", "x", "both")
    assert [asked["op"] for asked in other.asked[:3]] == ["offer", "spans", "stage"]
    assert other.sent == [2, 1, 0], "full ones, once; the last one will be another"
    assert other.asked.index(other.of("grow")[0]) > other.asked.index(other.of("chunks")[-1])
    grown = b"".join(asked["tokens"] for asked in other.of("grow"))
    assert grown == context.answer[: len(grown)], "each token once, in order"
    assert (move.n_chunks, move.n_bytes) == (3, 3 * len(DATA))


@on_a_loop
async def test_where_the_link_is_slower_than_the_other_node_chunks_stop_and_the_front_is_computed() -> None:
    move, _, other = staged(speed=30.0)
    other.chunk_s, other.compute_s = 5.0, 0.2
    await move.bring("mail", "x", "both")
    assert other.sent in ([2], [2, 1]), "one more may be on the way when it is known"
    assert len(other.of("grow")) >= 1 and move.n_chunks == len(other.sent)


@on_a_loop
async def test_where_the_other_node_computes_more_slowly_than_it_said_the_rest_of_the_chunks_is_sent() -> None:
    move, _, other = staged(speed=1.0, step_s=20.0, n=1000)
    other.chunk_s, other.compute_s, other.most = 5.0, 2.0, 128
    assert await move.bring("mail", "x", "both")
    assert other.sent == list(range(14, 2, -1)), "each once, but for those that were computed meanwhile, or sooner"
    grows = [i for i, asked in enumerate(other.asked) if asked["op"] == "grow"]
    assert sum(len(asked["pieces"]) for asked in other.asked[: grows[0]] if asked["op"] == "chunks") <= 2
    assert sum(len(asked["pieces"]) for asked in other.asked[grows[1] :] if asked["op"] == "chunks") == 0
    assert (move.n_chunks, move.n_bytes) == (12, 12 * len(DATA))


@on_a_loop
async def test_where_the_other_node_has_no_time_to_compute_all_chunks_are_sent() -> None:
    move, _, other = staged(speed=1.0, step_s=20.0, n=1000)
    other.chunk_s, other.compute_s, other.most = 5.0, 2.0, 0
    assert await move.bring("mail", "x", "both")
    assert other.sent == list(range(14, -1, -1))


@pytest.mark.parametrize("chunk_s, token_s", [(0.3, 0.01), (0.7, 0.01), (0.7, 0.03), (5.0, 0.01)])
@on_a_loop
async def test_the_first_chunks_are_computed_while_the_last_ones_come_until_both_meet(
    chunk_s: float, token_s: float
) -> None:
    n_chunks = 47
    move, _, other = staged(speed=0.0, n=CHUNK_TOKENS * n_chunks)
    other.chunk_s, other.meanwhile_s, other.compute_s = chunk_s, token_s, token_s * CHUNK_TOKENS * n_chunks
    began = other.now
    assert await move.bring("mail", "x", "both")
    link_s, compute_s = chunk_s * n_chunks, other.compute_s
    least = 1 / (1 / link_s + 1 / compute_s)
    assert other.now - began <= least + 4 * chunk_s + CHUNK_TOKENS * token_s
    if chunk_s < 5.0:
        assert other.now - began < 0.85 * min(link_s, compute_s)
    assert other.sent == list(range(n_chunks - 1, n_chunks - 1 - len(other.sent), -1)), "each once"
    assert other.of("grow")[0]["tokens"] == b"", "it waits for what is being computed"


@pytest.mark.parametrize("way, chunk_s, sent", [("both", 0.01, 47), ("chunks", 5.0, 47), ("tokens", 0.01, 0)])
@on_a_loop
async def test_nothing_is_computed_meanwhile_for_a_fast_link_or_where_only_one_way_is_asked_for(
    way: str, chunk_s: float, sent: int
) -> None:
    move, _, other = staged(speed=0.0, n=CHUNK_TOKENS * 47)
    other.chunk_s, other.compute_s = chunk_s, 30.0
    assert await move.bring("mail", "x", way)
    assert len(other.sent) == sent and not any(asked["computes"] for asked in other.of("chunks"))


@pytest.mark.parametrize("wrong", ["soon", [1], -1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["compute_s", "n_cells"])
@on_a_loop
async def test_what_the_other_node_says_must_be_numbers(field: str, wrong: Any) -> None:
    move, _, other = staged(speed=30.0)
    other.says[field] = wrong
    assert not await move.bring("mail", "x", "both"), "all goes at once then"


@on_a_loop
async def test_what_takes_long_to_compute_is_asked_for_until_it_is_there() -> None:
    move, _, other = staged(speed=1.0)
    other.most = 60
    await move.bring("mail", "x", "tokens")
    assert other.n_there >= N and move.n_rounds >= 4


@on_a_loop
async def test_a_node_that_is_busy_is_not_waited_for() -> None:
    move, _, other = staged(speed=30.0)
    other.most = 0
    assert await move.bring("mail", "x", "tokens")
    assert move.n_rounds < MOST_ROUNDS


@pytest.mark.parametrize("speed, step_s, token_s", [(30.0, 0.02, 0.002), (100.0, 0.05, 0.001), (5.0, 1.0, 0.02)])
@on_a_loop
async def test_rounds_end_when_the_pause_does_not_become_shorter(speed: float, step_s: float, token_s: float) -> None:
    """The fixed point: what is drawn while a round is computed that brings as many."""
    move, context, other = staged(speed, step_s, token_s)
    await move.bring("mail", "x", "tokens")
    assert 1 <= move.n_rounds < MOST_ROUNDS
    left = len(context.answer) - sum(len(asked["tokens"]) for asked in other.of("grow"))
    fixed = speed * step_s / (1 - speed * token_s)
    assert left / TOKEN_BYTES <= 1.5 * fixed + 2


@on_a_loop
async def test_an_answer_that_grows_faster_than_it_is_computed_is_handed_over_all_the_same() -> None:
    move, _, _ = staged(speed=1000.0, token_s=0.01)
    assert await move.bring("mail", "x", "tokens")
    assert move.n_rounds <= MOST_ROUNDS


@on_a_loop
async def test_the_last_request_has_the_tokens_that_are_not_there_yet_and_all_text() -> None:
    move, context, other = staged(speed=30.0, step_s=0.5)
    await move.bring("mail", "x", "tokens")
    n = sum(len(asked["tokens"]) for asked in other.of("grow")) // TOKEN_BYTES
    answer = ContextSpan(context.answer + packed(7, 8), "assistant", "so it is", True)
    take = move.take(context.final(answer))
    assert take is not None and take.move == move.move and take.n_known == n > 0
    (span,) = take.spans
    assert (span.role, span.text, span.open) == ("assistant", "so it is", True)
    assert context.answer[: TOKEN_BYTES * n] + span.tokens == answer.tokens


@on_a_loop
async def test_tokens_that_were_taken_back_are_not_known() -> None:
    move, context, _ = staged(speed=30.0, step_s=0.5)
    await move.bring("mail", "x", "tokens")
    cut = ContextSpan(context.answer[:12] + packed(5), "assistant", "so", True)
    take = move.take(context.final(cut))
    assert take is not None and take.n_known == 3 and take.spans[0].tokens == packed(5)
    ended = move.take(context.final())
    assert ended is not None and (ended.n_known, ended.spans) == (0, ())
    assert move.take(ExportedContext("x", "m", "v", (ContextSpan(packed(1)),))) is None, "it is another one"


@on_a_loop
async def test_a_node_that_takes_nothing_ahead_may_take_all_at_once_and_one_that_is_gone_may_not() -> None:
    move, _, other = staged(speed=30.0)
    other.fails["stage"] = ModelMismatch("another")
    assert not await move.bring("mail", "x", "both")
    move, _, other = staged(speed=30.0)
    other.fails["grow"] = NodeUnreachable("gone")
    with pytest.raises(NodeUnreachable):
        await move.bring("mail", "x", "both")
