"""What an answer is: the text that streams, its tokens, and what the context keeps of it.

Tokens of the fake engine depend on every byte of KV: one wrong chunk changes an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from llmaas import errors
from llmaas.calls import CallSpec, FinishReason, Generation, Piece, Sampling, Turn
from llmaas.engine.constraint.machine import GrammarMachine, MachineConstraint
from llmaas.engine.constraint.port import Mask
from llmaas.engine.fake import FakeEngine
from llmaas.records import Message
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house


@on_a_loop
async def test_a_turn_is_templated_answered_and_kept(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        info = await h.service.create(APP, name="inbox", system="Be brief.")
        answer, done = await h.say("inbox", "hello", 8)
        assert done.reason is FinishReason.LENGTH and done.n_generated == 8
        detail = h.service.show(APP, info.id)
        assert [(m.role, m.content) for m in detail.messages] == [
            ("system", "Be brief."),
            ("user", "hello"),
            ("assistant", answer),
        ]
        await h.say("inbox", "again", 4)
        engine = h.thread.engine
        messages = [*detail.messages, Message("user", "again"), h.service.show(APP, "inbox").messages[-1]]
        text = engine.render(messages, answer=False)
        whole = engine.tokenize(text, special=True, bos=True)
        assert h.tokens("inbox") == whole[: len(h.tokens("inbox"))], "turn by turn is the same as all at once"


@on_a_loop
async def test_generating_without_a_turn_continues_an_open_answer(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", "go", 6)
        first = h.service.show(APP, "x").messages[-1].content
        more, done = await h.call("x", Turn(), Generation(6))
        assert done.n_prompt == 0
        messages = h.service.show(APP, "x").messages
        assert [m.role for m in messages] == ["user", "assistant"]
        assert messages[-1].content == first + more
    async with house(tmp_path) as h:
        assert (await h.shown("x")).messages == messages


@on_a_loop
async def test_appended_messages_are_answered_by_a_bare_generate(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        _, done = await h.call("x", Turn((Message("user", "hi"),)), None)
        assert done.reason is FinishReason.APPENDED
        answer, _ = await h.call("x", Turn(), Generation(6))
        await h.service.create(APP, name="y", system=None)
        assert (await h.say("y", "hi", 6))[0] == answer


@on_a_loop
async def test_raw_prompts_make_raw_contexts(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.call("x", Turn(prompt="Once upon a time"), Generation(5))
        detail = h.service.show(APP, "x")
        assert detail.messages == () and detail.info.n_tokens == 1 + 16 + 5


@on_a_loop
async def test_a_stop_string_ends_the_answer_and_is_not_shown(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        whole, _ = await h.say("x", "tell", 30)
        await h.service.truncate(APP, "x", n_tokens=0, n_messages=None)
        stop = whole[10:13]
        cut, done = await h.say("x", "tell", 30, stop=(stop,))
        assert done.reason is FinishReason.STOP and done.stop == stop
        assert cut == whole[: whole.index(stop)]


class WideTokens(FakeEngine):
    """Each token but a space is two characters of text: a stop string can begin within one."""

    def piece(self, token: int) -> bytes:
        return super().piece(token) + (b"" if token == ord(" ") else b"~")


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("engine_type", [FakeEngine, WideTokens])
@on_a_loop
async def test_after_a_stop_string_the_context_holds_what_the_app_was_told(
    tmp_path: Path, engine_type: type[FakeEngine], raw: bool
) -> None:
    turn = Turn(prompt="tell") if raw else Turn((Message("user", "tell"),))
    async with house(tmp_path, engine_type=engine_type) as h:
        engine = h.thread.engine
        await h.service.create(APP, name="x", system=None)
        whole, before = await h.call("x", turn, Generation(30))
        drawn = h.tokens("x")[before.n_prompt - before.n_tokens :][-30:]
        await h.service.truncate(APP, "x", n_tokens=0, n_messages=None)
        stop = whole[11:15]
        told, done = await h.call("x", turn, Generation(30, stop=(stop,)))
        assert told == whole[: whole.index(stop)] and done.stop == stop
        n = max(n for n in range(31) if told.startswith(b"".join(map(engine.piece, drawn[:n])).decode()))
        rest = told[len(b"".join(map(engine.piece, drawn[:n]))) :]
        want = drawn[:n] + engine.tokenize(rest, special=False, bos=False)
        assert h.tokens("x")[done.n_tokens - done.n_kept :] == want
        assert done.n_kept == len(want) < done.n_generated
        assert done.n_tokens == len(h.tokens("x")) == h.service.info(APP, "x").n_tokens
        if not raw:
            assert h.service.show(APP, "x").messages[-1].content == told
    async with house(tmp_path, engine_type=engine_type) as h:
        assert h.tokens("x")[-len(want) :] == want, "also after a restart"


@pytest.mark.parametrize("n_before", [0, 50, 60])
@on_a_loop
async def test_going_on_after_a_stop_string_is_going_on_from_what_was_told(tmp_path: Path, n_before: int) -> None:
    async with house(tmp_path) as h:
        prompt = "." * n_before + "tell"
        for name in ("a", "b"):
            await h.service.create(APP, name=name, system=None)
        whole, _ = await h.call("a", Turn(prompt=prompt), Generation(30))
        await h.service.truncate(APP, "a", n_tokens=0, n_messages=None)
        told, _ = await h.call("a", Turn(prompt=prompt), Generation(30, stop=(whole[20:24],)))
        await h.call("b", Turn(prompt=prompt + told), None)
        assert h.tokens("a") == h.tokens("b")
        more = [await h.call(name, Turn(), Generation(20)) for name in ("a", "b")]
        assert more[0][0] == more[1][0], "the KV of what was cut off is not in use"
        more = [await h.call(name, Turn(prompt="Observation: 4"), Generation(20)) for name in ("a", "b")]
        assert more[0][0] == more[1][0] and h.tokens("a") == h.tokens("b")


@on_a_loop
async def test_pieces_carry_their_tokens_log_probabilities_while_text_is_held_back(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"step_time": lambda n: 0.025}) as h:  # so each token has a piece of its own
        await h.service.create(APP, name="x", system=None)
        whole, _ = await h.say("x", "tell", 15)
        stop = whole[10:14]
        for generation in (Generation(15, logprobs=2), Generation(15, logprobs=0, stop=(stop, whole[3:9] + "?"))):
            await h.service.truncate(APP, "x", n_tokens=0, n_messages=None)
            pieces: list[Piece] = []
            turn = Turn((Message("user", "tell"),))
            _, future = h.service.submit(APP, "x", CallSpec(turn, generation), pieces.append)
            done = await future
            tokens = [token for piece in pieces for token in piece.tokens]
            told = [each for piece in pieces for each in piece.logprobs or ()]
            assert [each.token for each in told] == tokens and len(tokens) == done.n_generated
            assert tokens[: done.n_kept] == h.tokens("x")[-done.n_kept :]
            assert done.n_kept == done.n_generated or done.stop == stop
            assert "".join(each.text for each in told).startswith("".join(piece.text for piece in pieces))
            assert all(each.logprob < 0 and len(each.top) == generation.logprobs for each in told)
            assert all(each.top[0].token == each.token for each in told if each.top), "it was a greedy answer"
        assert any(piece.tokens and not piece.text for piece in pieces), "something was held back"


@on_a_loop
async def test_nothing_is_told_of_probabilities_if_nobody_asked(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        pieces: list[Piece] = []
        _, future = h.service.submit(APP, "x", CallSpec(Turn(prompt="tell"), Generation(5)), pieces.append)
        await future
        assert {piece.logprobs for piece in pieces} == {None}


@on_a_loop
async def test_penalties_reach_the_engine_with_the_prompt_and_a_seed_fixes_the_answer(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        said = []
        strong = Sampling(repeat_penalty=8.0, frequency_penalty=3.0, temperature=0.5, seed=9)
        for i, sampling in enumerate((strong, strong, Sampling(temperature=0.5, seed=9))):
            await h.service.create(APP, name=f"c{i}", system=None)
            said.append((await h.say(f"c{i}", "etaoin", 30, sampling=sampling))[0])
        assert said[0] == said[1] != said[2]
        assert len(set(said[0][:12])) > 8, "nothing comes soon again"


@on_a_loop
async def test_a_grammar_that_the_engine_refuses_is_the_callers_fault_and_leaves_the_context_alone(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", "tell", 5)
        before = h.tokens("x")
        with pytest.raises(errors.BadRequest, match="no rule 'root'"):
            await h.say("x", "more", 5, sampling=Sampling(grammar='other ::= "a"'))
        assert h.tokens("x") == before
        await h.say("x", "more", 5)


@on_a_loop
async def test_an_answer_keeps_to_its_grammar_or_schema(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        for seed in range(5):
            hot = Sampling(temperature=1.0, seed=seed, grammar='root ::= ("yes" | "no"){1,3}')
            said, done = await h.say("x", "tell", 30, sampling=hot)
            assert re.fullmatch("(yes|no){1,3}", said) and done.reason is FinishReason.STOP
        schema = Sampling(json_schema='{"enum": ["red", {"blue": [1, null]}]}')
        said, done = await h.say("x", "tell", 60, sampling=schema)
        assert json.loads(said) in ("red", {"blue": [1, None]}) and done.reason is FinishReason.STOP


@on_a_loop
async def test_an_answer_that_is_cut_off_says_length(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        said, done = await h.say("x", "tell", 3, sampling=Sampling(grammar='root ::= "abcdef"'))
        assert said == "abc" and done.reason is FinishReason.LENGTH


def _no_mask(self: GrammarMachine, _: object) -> Generator[None, None, Mask]:
    yield from ()
    return np.zeros(self.vocabulary.n_vocab, bool)


@on_a_loop
async def test_an_answer_that_its_grammar_does_not_let_go_on_fails_and_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", "tell", 5)
        before, accept = h.tokens("x"), MachineConstraint.accept
        monkeypatch.setattr(MachineConstraint, "accept", lambda self, token: token == ord("a") and accept(self, token))
        monkeypatch.setattr(GrammarMachine, "mask", _no_mask)
        with pytest.raises(errors.BadRequest, match="no token"):
            await h.say("x", "more", 9, sampling=Sampling(grammar='root ::= "a" [a-z]+'))
        assert h.tokens("x") == before
        monkeypatch.undo()
        await h.say("x", "more", 5)


@on_a_loop
async def test_greedy_and_seeded_answers_are_reproducible(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        said = []
        for i in range(2):
            await h.service.create(APP, name=f"x{i}", system=None)
            said.append((await h.say(f"x{i}", "hi", 12, sampling=Sampling(temperature=1.0, seed=7)))[0])
        assert said[0] == said[1]
