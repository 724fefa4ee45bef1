"""The service on the fake engine, whose tokens depend on every byte of KV: one wrong chunk changes an answer."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from llmaas import errors
from llmaas.calls import CallSpec, FinishReason, Generation, Piece, Sampling, Turn
from llmaas.clock import RealClock
from llmaas.kvchunks.store.store import Files, Store
from llmaas.records import AppId, Message, Precision
from llmaas.service.directory import Directory
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

TEXT = "All happy families are alike; every unhappy family is unhappy in its own way. "


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
async def test_contexts_that_swap_in_and_out_say_what_they_would_have_said_alone(tmp_path: Path) -> None:
    async def conversation(h: House, names: list[str]) -> dict[str, list[str]]:
        said: dict[str, list[str]] = {name: [] for name in names}
        for name in names:
            await h.service.create(APP, name=name, system=None)
        for turn in range(4):
            for name in "abacdcbd":  # LRU never hits in a plain circle
                said[name].append((await h.say(name, f"{name} {turn} {TEXT}", 12))[0])
        return said

    names = ["a", "b", "c", "d"]
    async with house(tmp_path / "small", engine={"n_cells": 1100}, pool_bytes=150_000) as h:
        swapped = await conversation(h, names)
        counts = h.service.stats()["counts"]
        assert isinstance(counts, dict)
        assert counts["tokens_from_pool"] and counts["tokens_from_disk"]
    async with house(tmp_path / "large", engine={"n_cells": 8192}) as h:
        assert swapped == await conversation(h, names)


@pytest.mark.parametrize("precision", [Precision(16, 16), Precision(4, 4)])
@on_a_loop
async def test_a_conversation_goes_on_after_a_restart_from_disk(tmp_path: Path, precision: Precision) -> None:
    async with house(tmp_path / "a", bits=precision) as h:
        await h.service.create(APP, name="x", system="s")
        await h.say("x", TEXT * 3, 20)
        before = h.tokens("x")
    async with house(tmp_path / "a", bits=precision) as h:
        assert h.tokens("x") == before
        answer, done = await h.say("x", "and then?", 20)
        assert done.switch.disk == len(before) - 1, "all but the last token, which was never computed"
        assert done.switch.recomputed == 0
    async with house(tmp_path / "b", bits=precision) as h:
        await h.service.create(APP, name="x", system="s")
        await h.say("x", TEXT * 3, 20)
        assert (await h.say("x", "and then?", 20))[0] == answer


@on_a_loop
async def test_a_fork_shares_its_parents_chunks_and_then_goes_its_own_way(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="trunk", system=None)
        await h.say("trunk", TEXT * 3, 10)
        await h.service.wait_idle()
        on_disk = h.store.stats().chunks
        twin = await h.service.fork(APP, "trunk", name="twin")
        assert twin.n_tokens == len(h.tokens("trunk"))
        assert h.store.stats().chunks == on_disk
        assert (await h.say("twin", "same", 9))[0] == (await h.say("trunk", "same", 9))[0]
        await h.service.delete(APP, "trunk")
        await h.service.wait_idle()
        await h.say("twin", "more", 5)


@on_a_loop
async def test_truncating_to_a_message_and_answering_again_gives_the_same_answer(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", "one " + TEXT, 10)
        first, _ = await h.say("x", "two " + TEXT, 10)
        assert (await h.service.truncate(APP, "x", n_tokens=None, n_messages=2)).n_messages == 2
        again, _ = await h.say("x", "two " + TEXT, 10)
        assert again == first
        await h.service.truncate(APP, "x", n_tokens=70, n_messages=None)
        assert len(h.tokens("x")) == 70
        for bad in (
            {"n_tokens": 71, "n_messages": None},
            {"n_tokens": None, "n_messages": 9},
            {"n_tokens": 1, "n_messages": 1},
        ):
            with pytest.raises(errors.BadRequest):
                await h.service.truncate(APP, "x", **bad)


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
        assert h.service.show(APP, "x").messages == messages


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
        assert done.reason is FinishReason.STOP
        assert cut == whole[: whole.index(stop)]


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
            assert [each.token for each in told] == tokens == h.tokens("x")[-done.n_generated :]
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
        with pytest.raises(errors.BadRequest, match="no grammars"):
            await h.say("x", "more", 5, sampling=Sampling(grammar='root ::= "a"'))
        assert h.tokens("x") == before
        await h.say("x", "more", 5)


@on_a_loop
async def test_a_cancelled_answer_keeps_what_was_streamed_and_one_without_tokens_leaves_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"step_time": lambda n: 0.002}) as h:
        await h.service.create(APP, name="x", system=None)
        pieces: list[str] = []
        request, future = h.service.submit(
            APP, "x", CallSpec(Turn((Message("user", "go"),)), Generation(500)), lambda p: pieces.append(p.text)
        )
        while len(pieces) < 5:
            await asyncio.sleep(0.001)
        h.service.cancel(request)
        with pytest.raises(errors.Cancelled) as e:
            await future
        assert e.value.n_generated >= 5
        assert h.service.show(APP, "x").messages[-1].content == "".join(pieces)
        before = h.tokens("x")
        request, future = h.service.submit(
            APP, "x", CallSpec(Turn((Message("user", TEXT * 4),)), Generation(5)), pieces.append
        )
        await asyncio.sleep(0)
        h.service.cancel(request)
        with pytest.raises(errors.Cancelled):
            await future
        assert h.tokens("x") == before
        assert len((await h.say("x", "and?", 5))[0]) > 0


@on_a_loop
async def test_calls_of_many_contexts_run_together_and_calls_of_one_run_in_order(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 600, "step_time": lambda n: 0.001}) as h:
        for i in range(6):
            await h.service.create(APP, name=f"c{i}", system=None)
        jobs = [h.say(f"c{i}", f"{i} {j} {TEXT[:60]}", 10) for j in range(2) for i in range(6)]
        await asyncio.gather(*jobs)
        for i in range(6):
            messages = h.service.show(APP, f"c{i}").messages
            assert [m.content[:3] for m in messages if m.role == "user"] == [f"{i} 0", f"{i} 1"]


@on_a_loop
async def test_deleting_a_context_ends_its_call_and_forgets_its_chunks(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"step_time": lambda n: 0.002}) as h:
        await h.service.create(APP, name="x", system=None)
        job = asyncio.create_task(h.say("x", TEXT, 500))
        await asyncio.sleep(0.05)
        await h.service.delete(APP, "x")
        with pytest.raises(errors.Cancelled):
            await job
        await h.service.wait_idle()
        with pytest.raises(errors.UnknownContext):
            h.service.show(APP, "x")
    with Store(tmp_path) as store:
        assert not store.stats().chunks


@on_a_loop
async def test_apps_see_only_their_own_contexts(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        mine = await h.service.create(APP, name="x", system=None)
        other = AppId("1000/other")
        for ref in (mine.id, "x"):
            with pytest.raises(errors.UnknownContext):
                h.service.show(other, ref)
        await h.service.create(other, name="x", system=None)
        assert len(h.service.contexts(APP)) == 1 and len(h.service.contexts(None)) == 2
        with pytest.raises(errors.ContextExists):
            await h.service.create(APP, name="x", system=None)


@on_a_loop
async def test_too_long_a_prompt_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", "hi", 3)
        before = h.tokens("x")
        with pytest.raises(errors.ContextTooLong):
            await h.say("x", "x" * 2000, 3)
        assert h.tokens("x") == before
        with pytest.raises(errors.ContextTooLong):
            await h.service.create(APP, name="long", system="x" * 2000)
        await h.service.create(APP, name="long", system="short")
        await h.service.create(APP, name="empty", system=None)
        with pytest.raises(errors.BadRequest):
            await h.call("empty", Turn(), Generation(3))


@on_a_loop
async def test_more_calls_than_the_queue_holds_are_refused_as_busy(tmp_path: Path) -> None:
    async with house(tmp_path, queue_limit=2) as h:
        await h.service.create(APP, name="x", system=None)
        jobs = [asyncio.create_task(h.say("x", "a", 3)) for _ in range(3)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(r) for r in results].count(errors.Busy) == 1


class FullDisk(Files):
    """A disk that has no room while ``full``."""

    full = False

    def pwrite(self, *args: Any) -> Any:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().pwrite(*args)


@on_a_loop
async def test_a_full_disk_keeps_chunks_in_memory_and_the_service_goes_on(tmp_path: Path) -> None:
    files = FullDisk()
    async with house(tmp_path, store=Store(tmp_path, files=files), engine={"n_cells": 600}, pool_bytes=80_000) as h:
        for name in "abc":
            await h.service.create(APP, name=name, system=None)
        files.full = True
        said = [(await h.say(name, TEXT * 2, 6))[0] for name in "abc"]
        said += [(await h.say(name, "more", 6))[0] for name in "abc"]
        files.full = False
        said += [(await h.say(name, "still", 6))[0] for name in "abc"]
        await h.service.wait_idle()
    async with house(tmp_path / "calm", engine={"n_cells": 4000}) as h:
        for name in "abc":
            await h.service.create(APP, name=name, system=None)
        calm = [(await h.say(name, text, 6))[0] for text in (TEXT * 2, "more", "still") for name in "abc"]
    assert calm == said


@on_a_loop
async def test_a_context_of_another_tokenizer_is_kept_but_not_used(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.service.create(APP, name="x", system=None)
        await h.say("x", TEXT, 3)
    async with house(tmp_path, engine={"vocab": "other", "fingerprint": "other"}) as h:
        assert not h.service.contexts(APP)[0].usable
        with pytest.raises(errors.ModelMismatch):
            await h.say("x", "hi", 3)
    async with house(tmp_path, engine={"fingerprint": "finer-weights"}) as h:
        _, done = await h.say("x", "hi", 3)
        assert done.switch.disk == 0 and done.n_tokens > 80, "same tokens, other weights: recomputed"


@on_a_loop
async def test_greedy_and_seeded_answers_are_reproducible(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        said = []
        for i in range(2):
            await h.service.create(APP, name=f"x{i}", system=None)
            said.append((await h.say(f"x{i}", "hi", 12, sampling=Sampling(temperature=1.0, seed=7)))[0])
        assert said[0] == said[1]


@on_a_loop
async def test_stopping_ends_running_calls_as_shutting_down_and_keeps_their_tokens(tmp_path: Path) -> None:
    kept = ""
    async with house(tmp_path, engine={"step_time": lambda n: 0.002}) as h:
        await h.service.create(APP, name="x", system=None)
        job = asyncio.create_task(h.say("x", "go", 500))
        await asyncio.sleep(0.05)
        await h.service.stop()
        with pytest.raises(errors.ShuttingDown):
            await job
        kept = h.service.show(APP, "x").messages[-1].content
        with pytest.raises(errors.ShuttingDown):
            await h.say("x", "more", 3)
    async with house(tmp_path) as h:
        assert kept and h.service.show(APP, "x").messages[-1].content == kept


@on_a_loop
async def test_unnamed_contexts_get_names_of_their_own_even_at_the_same_time(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        made = await asyncio.gather(*(h.service.create(APP, name=None, system=None) for _ in range(5)))
        assert len({info.name for info in made}) == 5


class SetBack(RealClock):
    """A wall clock that somebody sets back by a day at every look."""

    looks = 0

    def wall(self) -> float:
        self.looks += 1
        return 1_700_000_000.0 - 86400.0 * self.looks


@on_a_loop
async def test_contexts_are_listed_by_use_whatever_the_wall_clock_does(tmp_path: Path) -> None:
    async with house(tmp_path, clock=SetBack()) as h:
        for name in "abc":
            await h.service.create(APP, name=name, system=None)
        await h.say("a", "hello")
        await h.service.truncate(APP, "b", n_tokens=0, n_messages=None)
        await h.service.fork(APP, "a", name="d")
        assert [info.name for info in h.service.contexts(APP)] == ["d", "b", "a", "c"]


@on_a_loop
async def test_what_a_fork_needs_outlives_a_context_that_was_cut_before_it_was_deleted(tmp_path: Path) -> None:
    """The chunks are sealed under the key of the first, which no longer contains them when its key is destroyed."""

    async with house(tmp_path, engine={"n_cells": 700}) as h:
        await h.service.create(APP, name="first", system=None)
        await h.say("first", "word " * 60)
        await h.service.wait_idle()
        await h.service.fork(APP, "first", name="fork")
        await h.service.truncate(APP, "first", n_tokens=0, n_messages=None)
        await h.service.delete(APP, "first")
        h.service.budget(pool_bytes=0)
        h.service.budget(pool_bytes=1 << 20)
        await h.service.create(APP, name="other", system=None)
        await h.say("other", "x" * 600)
        _, done = await h.say("fork", "on")
        assert done.switch.disk > 200
        counts = h.service.stats()["counts"]
        assert isinstance(counts, dict) and counts["chunks_damaged"] == 0


@on_a_loop
async def test_a_context_that_begins_like_another_of_its_app_takes_over_what_was_computed_for_that(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, engine={"n_cells": 1024}) as h:
        other = AppId("1000/other")
        first, twin, stranger = ((APP, "first"), (APP, "twin"), (other, "stranger"))
        system = "You answer in rhymes. " * 20
        answers = {}
        for app, name in (first, twin, stranger):
            await h.service.create(app, name=name, system=system)
            answers[name], done = await h.say(name, "Begin.", app=app)
            await h.service.wait_idle()
            shared = done.switch.pool + done.switch.disk
            assert (shared > 300) if name == "twin" else not shared
        assert len(set(answers.values())) == 1
        _, done = await h.say("twin", "Go on.")
        assert done.switch.cells > 400


@on_a_loop
async def test_a_hint_brings_a_context_back_before_it_is_called_and_no_call_waits_for_it(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 700}) as h:
        for name in ("first", "second"):
            await h.service.create(APP, name=name, system=None)
            await h.say(name, f"{name} " * 60)
            await h.service.wait_idle()
        before = h.service.show(APP, "first").info
        assert before.tiers[0] == 0
        h.service.hint(APP, "first")
        await h.service.wait_idle()
        after = h.service.show(APP, "first").info
        assert after.tiers[0] == after.n_tokens == before.n_tokens
        assert after.last_used == before.last_used and h.tokens("first")
        _, done = await h.say("first", "at last")
        assert done.switch.cells > 300 and not (done.switch.pool or done.switch.disk or done.switch.recomputed)
        for name in ("second", "first", "second"):  # hints under way when calls come
            h.service.hint(APP, name)
            h.service.hint(APP, "first")
            await asyncio.sleep(0)
            await h.say(name, "and now?")


@on_a_loop
async def test_a_context_comes_back_between_the_steps_of_another_that_answers(tmp_path: Path) -> None:
    def step_time(tokens: int) -> float:
        return 0.01

    async with house(tmp_path, engine={"n_cells": 2400, "step_time": step_time}) as h:
        for name in ("back", "pusher", "talker"):
            await h.service.create(APP, name=name, system=None)
        await h.say("back", "b" * 1200)
        await h.service.wait_idle()
        await h.say("pusher", "p" * 1500)
        await h.service.wait_idle()
        assert h.service.show(APP, "back").info.tiers[0] == 0
        pieces: list[str] = []
        _, talk = h.service.submit(
            APP,
            "talker",
            CallSpec(Turn((Message("user", "Go on."),)), Generation(500)),
            lambda p: pieces.append(p.text),
        )
        while len(pieces) < 20:
            await asyncio.sleep(0.01)
        before = len(pieces)
        _, done = await h.say("back", "and?", 1)
        assert done.switch.pool > 1000
        # Twenty chunks, four of which can be on their way at once: about one step for each four.
        assert len(pieces) - before < 20, "each load waited for sixteen steps"
        await talk


def test_names_are_not_given_out_twice_and_apps_that_once_asked_for_one_are_forgotten() -> None:
    directory, given = Directory(), []
    for i in range(20_000):
        directory.fresh_name(AppId(f"1000/{i}"))
        if i % 100 == 0:
            given.append(directory.fresh_name(APP))
    assert len(set(given)) == len(given)
    again = [directory.fresh_name(AppId(f"1000/{i}")) for i in range(15_000)]
    assert set(again) == {"context-1"}, "less than 5000 of them are remembered"
