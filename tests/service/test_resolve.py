"""Which context a conversation goes on in that is sent as a whole each time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llmaas.calls import CallSpec, Done, Generation, Turn
from llmaas.errors import BadRequest, Busy, Cancelled, DiskFull, QuotaExceeded, UnknownAdapter
from llmaas.kvchunks.store.store import ContextRow, Span
from llmaas.records import AppId, ContextId, Message, Resolved
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

SYSTEM = Message("system", "You are brief. " * 20)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


async def ask(h: House, history: Sequence[Message], n: int = 8, app: AppId = APP) -> tuple[str, Done, Resolved]:
    """One stateless request."""
    found = await h.service.resolve(app, history)
    rest = tuple(history[found.n_messages :])
    text, done = await h.call(found.context.id, Turn(rest), Generation(n), app)
    return text, done, found


@dataclass
class Client:
    """One that keeps the conversation and sends all of it."""

    house: House
    history: list[Message] = field(default_factory=list)

    async def say(self, text: str, n: int = 8) -> tuple[str, Done, Resolved]:
        self.history.append(user(text))
        answer, done, found = await ask(self.house, self.history, n)
        self.history.append(assistant(answer.strip()))
        return answer, done, found


def held(h: House, found: Resolved) -> list[Message]:
    return list(h.service.show(APP, found.context.id).messages)


@on_a_loop
async def test_a_conversation_goes_on_in_one_context_with_the_tokens_of_one(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        client = Client(h, [SYSTEM])
        first, answers = None, []
        for i, text in enumerate(("What is this?", "And that?", "Thanks!")):
            answer, done, found = await client.say(text)
            answers.append(answer)
            first = first or found.context
            assert found.context.id == first.id and found.context.anonymous
            assert found.n_messages == (2 * i + 1 if i else 0)
            assert not done.switch.recomputed
        assert first is not None
        named = await h.service.create(APP, name="same", system=SYSTEM.content)
        assert [(await h.say(named.id, m.content))[0] for m in client.history[1::2]] == answers
        assert h.tokens(first.id) == h.tokens(named.id)
        assert not h.service.show(APP, named.id).info.anonymous


@on_a_loop
async def test_a_named_context_is_forked_and_never_changed(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        named = await h.service.create(APP, name="inbox", system=SYSTEM.content)
        await h.say(named.id, "What is this?")
        before = h.service.show(APP, named.id).messages
        _, done, found = await ask(h, [*before, user("And that?")])
        assert found.context.id != named.id and found.context.anonymous and found.n_messages == 3
        assert h.service.show(APP, named.id).messages == before
        assert done.switch.tokens >= found.context.n_tokens // 64 * 64
        # The same once more is another context: the first has an answer now.
        _, _, again = await ask(h, [*before, user("And that, then?")])
        assert again.context.id not in (named.id, found.context.id) and again.n_messages == 3


@on_a_loop
async def test_an_edit_costs_only_what_follows_it(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 8192}) as h:
        client = Client(h, [SYSTEM])
        for i in range(4):
            await client.say(f"Question {i}: " + f"{i} and so on " * 20)
        edited = client.history[:5]
        part, rest = edited[3].content[:150], "something else " * 10
        edited[3] = user(part + rest)
        await h.service.wait_idle()
        _, done, found = await ask(h, edited[:4])
        assert found.n_messages == 3  # the system's, a question, an answer
        assert held(h, found)[:4] == edited[:4]
        shared = len("".join(f"<{m.role}\n{m.content}\n" for m in edited[:3])) + len(part)
        fresh = done.n_tokens - done.n_generated - done.switch.cells - done.switch.pool - done.switch.disk
        # The fake engine has a token for each byte: chunks of 64 of what stands before the edit are not computed.
        assert done.switch.cells + done.switch.pool + done.switch.disk >= (shared - 64) // 64 * 64
        assert fresh <= 64 + len(rest) + 64 + 40


@on_a_loop
async def test_regenerating_computes_nothing_but_what_opens_the_answer(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        client = Client(h, [SYSTEM])
        await client.say("What is this?")
        answer, _, _ = await client.say("And that?")
        await h.service.wait_idle()
        again, done, found = await ask(h, client.history[:-1])
        assert again == answer
        assert found.n_messages == len(client.history) - 1
        assert done.switch.recomputed == 0 and done.switch.cells == found.context.n_tokens
        assert done.n_prompt == len("<|im_start|>assistant\n") - len("<|im_start|>") + 1
        # The answer from before is still there, in a context of its own.
        _, _, old = await ask(h, [*client.history, user("Go on.")])
        assert old.n_messages == len(client.history)


@on_a_loop
async def test_two_conversations_with_one_system_prompt_do_not_disturb_each_other(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        one, two = Client(h, [SYSTEM]), Client(h, [SYSTEM])
        await one.say("One?")
        await two.say("Two?")
        contexts = set()
        for i in range(3):
            for client in (one, two):
                before = len(client.history)
                _, done, found = await client.say(f"And {i}?")
                assert found.n_messages == before and not done.switch.recomputed
                contexts.add(found.context.id)
        assert len(contexts) == 2


@on_a_loop
async def test_requests_at_once_with_one_history_get_contexts_of_their_own(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 8192}) as h:
        client = Client(h, [SYSTEM])
        await client.say("What is this?")
        history = [*client.history, user("And that?")]
        answers = await asyncio.gather(*(ask(h, history) for _ in range(4)))
        assert len({found.context.id for _, _, found in answers}) == 4
        assert len({text for text, _, _ in answers}) == 1
        assert {found.n_messages for _, _, found in answers} == {3}


@on_a_loop
async def test_a_history_is_found_while_a_call_runs_on_its_context(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 8192, "step_time": lambda tokens: 0.001}) as h:
        client = Client(h, [SYSTEM])
        await client.say("What is this?")
        found = await h.service.resolve(APP, [*client.history, user("One?")])
        running = asyncio.ensure_future(h.call(found.context.id, Turn((user("One?"),)), Generation(2000)))
        await asyncio.sleep(0.02)
        assert not running.done()
        _, _, other = await asyncio.wait_for(ask(h, [*client.history, user("Two?")]), 5)
        assert not running.done()
        assert other.n_messages == 3 and other.context.id != found.context.id
        await running


@on_a_loop
async def test_an_answer_cut_off_is_matched_with_what_the_client_saw(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 8192}) as h:
        client = Client(h, [SYSTEM])
        await client.say("What is this?")
        question = [*client.history, user("Tell me more.")]
        found = await h.service.resolve(APP, question)
        seen: list[str] = []
        spec = CallSpec(Turn((question[-1],)), Generation(400))
        request, future = h.service.submit(APP, found.context.id, spec, lambda piece: seen.append(piece.text))
        while len("".join(seen)) < 20:
            await asyncio.sleep(0.001)
        h.service.cancel(request)
        with pytest.raises(Cancelled):
            await future
        stored = held(h, found)[-1].content
        assert len(stored) >= 20
        seen_text = stored[:7].strip()
        cut = [*question, assistant(seen_text), user("Go on, please.")]
        _, done, again = await ask(h, cut)
        assert again.n_messages == len(question) and held(h, again)[3 : len(cut)] == cut[3:]
        assert not done.switch.recomputed
        # One that saw all of it goes on with all of it.
        whole = [*question, assistant(stored.strip()), user("And then?")]
        _, _, other = await ask(h, whole)
        assert other.n_messages == len(whole) - 1 and held(h, other)[-2] == whole[-1]


@on_a_loop
async def test_an_answer_that_was_never_given_here_is_taken_over(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        history = [SYSTEM, user("Hello?"), assistant("An answer from elsewhere."), user("And now?")]
        _, _, found = await ask(h, history)
        assert found.n_messages == 0 and held(h, found)[:4] == history
        _, _, again = await ask(h, [*held(h, found), user("Well?")])
        assert again.context.id == found.context.id and again.n_messages == 5


@on_a_loop
async def test_an_answer_matches_without_the_white_space_around_it_and_nothing_else_does(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.service.create(APP, name=None, system="Brief.")
        spoken = (user("Hello?"), assistant("  Hi there.\n"), user("Bye. "))
        await h.call(context.id, Turn(spoken), None)
        system = Message("system", "Brief.")
        cases = [
            ([system, user("Hello?"), assistant("Hi there."), user("Bye. ")], 4),
            ([system, user("Hello?"), assistant("Hi there."), user("Bye.")], 3),
            ([system, user("Hello? "), assistant("Hi there."), user("Bye. ")], 1),
            ([system, assistant("Hello?"), user("Hi there.")], 1),
            ([Message("system", "Brief. "), user("Hello?")], 0),
            ([user("Hello?")], 0),
            ([], 0),
        ]
        for history, n in cases:
            assert (await h.service.resolve(APP, history)).n_messages == n, history


@on_a_loop
async def test_raw_text_is_no_part_of_a_conversation(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.service.create(APP, name=None, system="Brief.")
        await h.say(context.id, "Hello?")
        await h.call(context.id, Turn(prompt="\nraw text\n"), None)
        before = h.service.show(APP, context.id).messages
        assert (await h.service.resolve(APP, before)).n_messages == 3
        await h.say(context.id, "And now?")
        after = h.service.show(APP, context.id).messages
        assert len(after) == 5
        found = await h.service.resolve(APP, after)
        assert found.n_messages == 3 and tuple(held(h, found)) == before
    async with house(tmp_path) as h:  # the same when it comes from the store
        assert (await h.service.resolve(APP, after)).n_messages == 3


@on_a_loop
async def test_what_a_truncation_left_of_a_message_is_no_part_of_a_conversation(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.service.create(APP, name=None, system="Brief.")
        await h.call(context.id, Turn((user("A question that is cut."),)), None)
        whole = h.service.show(APP, context.id)
        await h.service.truncate(APP, context.id, n_tokens=whole.info.n_tokens - 5, n_messages=None)
        await h.call(context.id, Turn((user("Another."),)), None)
        after = h.service.show(APP, context.id).messages
        assert [m.content for m in after] == ["Brief.", "Another."]
        assert (await h.service.resolve(APP, after)).n_messages == 1
    async with house(tmp_path) as h:
        assert (await h.service.resolve(APP, after)).n_messages == 1


@on_a_loop
async def test_conversations_are_found_after_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        client = Client(h, [SYSTEM])
        _, _, found = await client.say("What is this?")
    async with house(tmp_path) as h:
        client.house = h
        _, done, again = await client.say("And that?")
        assert again.context.id == found.context.id and again.context.anonymous and again.n_messages == 3
        assert not done.switch.recomputed or done.switch.recomputed < 64


@on_a_loop
async def test_what_happens_to_contexts_is_followed(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.service.create(APP, name="a", system="Brief.")
        await h.say(context.id, "One?")
        await h.say(context.id, "Two?")
        history = list(h.service.show(APP, context.id).messages)

        async def n_found() -> int:
            return (await h.service.resolve(APP, history)).n_messages

        assert await n_found() == 5
        fork = await h.service.fork(APP, context.id, name="b")
        for each in ("a", *(c.id for c in h.service.contexts(APP) if c.anonymous)):
            await h.service.delete(APP, each)
        assert await n_found() == 5
        for each in [c.id for c in h.service.contexts(APP) if c.anonymous]:
            await h.service.delete(APP, each)
        await h.service.truncate(APP, fork.id, n_tokens=None, n_messages=3)
        assert await n_found() == 3
        for each in h.service.contexts(APP):
            await h.service.delete(APP, each.id)
        assert await n_found() == 0
        assert len(h.service.contexts(APP)) == 1


@on_a_loop
async def test_another_app_finds_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        client = Client(h, [SYSTEM])
        await client.say("What is this?")
        _, _, found = await ask(h, [*client.history, user("And that?")], app=AppId("1000/other"))
        assert found.n_messages == 0


@on_a_loop
async def test_an_adapter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        with pytest.raises(UnknownAdapter):
            await h.service.resolve(APP, [user("Hello?")], adapter="terse")
        assert h.service.contexts(APP) == []


# -- claims ---------------------------------------------------------------------------------------


@on_a_loop
async def test_a_claimed_context_is_given_to_nobody_else_until_it_is_used(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        client = Client(h, [SYSTEM])
        _, _, first = await client.say("What is this?")
        history = [*client.history, user("And that?")]
        claimed = await h.service.resolve(APP, history)
        other = await h.service.resolve(APP, history)
        assert claimed.context.id == first.context.id != other.context.id
        assert claimed.n_messages == other.n_messages == 3
        await h.call(claimed.context.id, Turn((history[-1],)), None)  # the claim is over
        go_on = list(h.service.show(APP, claimed.context.id).messages)
        assert (await h.service.resolve(APP, go_on)).context.id == claimed.context.id


@on_a_loop
async def test_a_claim_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmaas.service.anonymous.CLAIM_S", 0.05)
    async with house(tmp_path) as h:
        client = Client(h, [SYSTEM])
        await client.say("What is this?")
        history = [*client.history, user("And that?")]
        claimed = await h.service.resolve(APP, history)
        await asyncio.sleep(0.06)
        assert (await h.service.resolve(APP, history)).context.id == claimed.context.id


@on_a_loop
async def test_an_empty_context_that_was_not_used_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmaas.service.anonymous.CLAIM_S", 0.0)
    async with house(tmp_path) as h:
        first = await h.service.resolve(APP, [user("Hello?")])
        assert (await h.service.resolve(APP, [user("Something else?")])).context.id == first.context.id


# -- how many -------------------------------------------------------------------------------------


@on_a_loop
async def test_the_least_used_anonymous_contexts_go(tmp_path: Path) -> None:
    async with house(tmp_path, anonymous_contexts=4) as h:
        await h.service.create(APP, name="kept", system="Brief.")
        found = [(await ask(h, [user(f"Question {i}?")]))[2].context.id for i in range(4)]
        again = list(h.service.show(APP, found[0]).messages)
        await ask(h, [*again, user("More?")])
        await ask(h, [user("Another?")])
        await h.service.wait_idle()
        left = {c.id for c in h.service.contexts(APP)}
        assert found[1] not in left and {found[0], found[2], found[3]} < left
        assert sum(c.anonymous for c in h.service.contexts(APP)) == 4
        for i in range(40):
            await ask(h, [user(f"Once more {i}?")])
        await h.service.wait_idle()
        assert sum(c.anonymous for c in h.service.contexts(APP)) == 4
        assert any(c.name == "kept" for c in h.service.contexts(APP))


@on_a_loop
async def test_claimed_and_busy_ones_stay_and_then_it_is_busy(tmp_path: Path) -> None:
    async with house(tmp_path, anonymous_contexts=2) as h:
        first = await h.service.resolve(APP, [user("One?")])
        second = await h.service.resolve(APP, [user("Two?")])
        with pytest.raises(Busy, match="anonymous"):
            await h.service.resolve(APP, [user("Three?")])
        await h.call(first.context.id, Turn((user("One?"),)), Generation(4))
        third = await h.service.resolve(APP, [user("Three?")])
        await h.service.wait_idle()
        assert {c.id for c in h.service.contexts(APP)} == {second.context.id, third.context.id}


@on_a_loop
async def test_one_is_enough_for_one_conversation(tmp_path: Path) -> None:
    async with house(tmp_path, anonymous_contexts=1) as h:
        client = Client(h, [SYSTEM])
        await client.say("One?")
        answer, _, _ = await client.say("Two?")
        again, done, found = await ask(h, client.history[:-1])
        assert again == answer and found.n_messages == 4 and not done.switch.recomputed
        _, _, found = await ask(h, [SYSTEM, user("Another.")])
        await h.service.wait_idle()
        assert [c.id for c in h.service.contexts(APP)] == [found.context.id]


@on_a_loop
async def test_the_source_of_a_copy_is_the_last_to_go(tmp_path: Path) -> None:
    async with house(tmp_path, anonymous_contexts=3, engine={"n_cells": 4096}) as h:
        first = Client(h, [SYSTEM])
        await first.say("One?")
        await first.say("Two?")
        for i in range(2):
            await ask(h, [user(f"Another {i}?")])
        _, _, found = await ask(h, [*first.history[:3], user("Three?")])
        assert found.n_messages == 3
        await h.service.wait_idle()
        assert len(h.service.contexts(APP)) == 3


@on_a_loop
async def test_a_fork_at_the_quota_does_not_lose_what_it_is_made_of(tmp_path: Path) -> None:
    async with house(tmp_path, app_contexts=2) as h:
        _, _, old = await ask(h, [user("One?")])
        await ask(h, [user("Two?")])
        fork = await h.service.fork(APP, old.context.id, name="fork")
        assert {c.id for c in h.service.contexts(APP)} == {old.context.id, fork.id}


@on_a_loop
async def test_a_disk_that_fails_leaves_them_and_fails_the_request_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, anonymous_contexts=1) as h:
        for i in range(12):
            await ask(h, [user(f"Question {i}?")])
        await h.service.wait_idle()

        def fails(*args: object) -> None:
            raise DiskFull("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(h.store, "delete_context", fails)
            patch.setattr(h.store, "create_context", fails)
            for i in range(12):
                with pytest.raises(DiskFull):
                    await asyncio.wait_for(h.service.resolve(APP, [user(f"More {i}?")]), 5)
            await h.service.wait_idle()
        assert len(h.service.contexts(APP)) == 1
        await ask(h, [user("And now?")])


@on_a_loop
async def test_requests_at_once_make_no_more_of_them_than_allowed(tmp_path: Path) -> None:
    async with house(tmp_path, anonymous_contexts=3) as h:
        asked = [h.service.resolve(APP, [user(f"Question {i}?")]) for i in range(10)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(each, Busy) for each in answers) == 7
        assert len(h.service.contexts(APP)) == 3


@on_a_loop
async def test_a_large_history_is_hashed_off_the_loop(tmp_path: Path) -> None:
    async with house(tmp_path, engine={"n_cells": 1 << 16}) as h:
        history = [SYSTEM, user("x" * 50_000)]
        answer, _, _ = await ask(h, history)
        _, _, found = await ask(h, [*history, assistant(answer.strip()), user("And now?")])
        assert found.n_messages == 3


@on_a_loop
async def test_they_go_before_an_app_is_told_that_its_quota_is_used_up(tmp_path: Path) -> None:
    async with house(tmp_path, app_contexts=4) as h:
        for i in range(3):
            await ask(h, [user(f"Question {i}?")])
        for name in "abcd":
            await h.service.create(APP, name=name, system=None)
        assert {c.name for c in h.service.contexts(APP)} == set("abcd")
        with pytest.raises(QuotaExceeded):
            await h.service.resolve(APP, [user("Question?")])
        with pytest.raises(QuotaExceeded):
            await h.service.create(APP, name="e", system=None)


@on_a_loop
async def test_they_go_before_an_app_is_told_that_its_text_is_too_much(tmp_path: Path) -> None:
    async with house(tmp_path, app_text_bytes=24_000, engine={"n_cells": 4096}) as h:
        named = await h.service.create(APP, name="kept", system="Brief.")
        for i in range(12):
            await ask(h, [user(f"Question {i}? " + "x" * 300)])
        await h.service.wait_idle()
        n_before = len(h.service.contexts(APP))
        assert n_before < 13
        await h.call(named.id, Turn((user("y" * 800),)), None)
        await h.call(named.id, Turn((user("y" * 700),)), None)
        n_left = len(h.service.contexts(APP))
        assert 1 < n_left < n_before
        with pytest.raises(QuotaExceeded):  # without them it would be too much, too: none goes in vain
            await h.call(named.id, Turn((user("y" * 900),)), None)
        assert len(h.service.contexts(APP)) == n_left
        await h.call(named.id, Turn((user("y" * 400),)), None)
        assert [c.name for c in h.service.contexts(APP)] == ["kept"]


@on_a_loop
async def test_apps_cannot_choose_such_names_and_older_contexts_that_have_them_stay(tmp_path: Path) -> None:
    async with house(tmp_path, anonymous_contexts=1) as h:
        for name in ("~", "~notes", "~0123456789abcdef"):
            with pytest.raises(BadRequest, match="begins with ~"):
                await h.service.create(APP, name=name, system=None)
        context = await h.service.create(APP, name="notes", system="Brief.")
        with pytest.raises(BadRequest, match="begins with ~"):
            await h.service.fork(APP, context.id, name="~copy")
        old = ContextRow(ContextId("0" * 16), APP, "~notes", "fake", "fake-bytes", 0.0, 0.0, 0)
        h.store.create_context(old, [Span((65,), "system", "Brief.")])  # an earlier version allowed any name
    async with house(tmp_path, anonymous_contexts=1) as h:
        for i in range(3):
            await ask(h, [user(f"Question {i}?")])
        await h.service.wait_idle()
        kept = await h.shown("~notes")
        assert not kept.info.anonymous and kept.messages == (Message("system", "Brief."),)


# -- fork -----------------------------------------------------------------------------------------


@on_a_loop
async def test_fork_takes_the_first_messages(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.service.create(APP, name="a", system=SYSTEM.content)
        await h.say(context.id, "One?")
        await h.say(context.id, "Two?")
        messages = h.service.show(APP, context.id).messages
        for n in range(len(messages) + 1):
            fork = await h.service.fork(APP, context.id, name=None, n_messages=n)
            assert h.service.show(APP, fork.id).messages == messages[:n]
            assert h.tokens(fork.id) == h.tokens(context.id)[: fork.n_tokens]
        for n in (-1, len(messages) + 1):
            with pytest.raises(BadRequest, match="messages"):
                await h.service.fork(APP, context.id, name=None, n_messages=n)
        cut = await h.service.fork(APP, context.id, name="cut", n_messages=3)
        answer, done = await h.say(cut.id, "Two?")
        assert answer == messages[-1].content and done.switch.recomputed == 0
    async with house(tmp_path) as h:
        assert (await h.shown("cut")).messages == messages
