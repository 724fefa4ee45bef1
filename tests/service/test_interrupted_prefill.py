"""A turn that is interrupted before its answer begins is undone; what was computed of it is there if it comes again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmaas import errors
from llmaas.calls import CallSpec, Generation, Turn
from llmaas.records import Message
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

TEXT = "All happy families are alike; every unhappy family is unhappy in its own way. " * 7
SLOW: dict[str, Any] = {"engine": {"step_time": lambda n: 0.03}, "prefill_slice": 64}


def long_turn() -> CallSpec:
    return CallSpec(Turn((Message("user", TEXT),)), Generation(5))


def cells_used(h: House) -> int:
    cells = h.service.stats()["cells"]
    assert isinstance(cells, dict)
    return int(cells["used"])


async def interrupt(h: House, spec: CallSpec, n: int = 256, context: str = "x") -> None:
    """Cancel the call when ``n`` tokens more are in the cells, and no answer has begun."""
    n += cells_used(h)
    request, future = h.service.submit(APP, context, spec, lambda piece: None)
    while cells_used(h) < n:
        await asyncio.sleep(0.002)
    h.service.cancel(request)
    with pytest.raises(errors.Cancelled) as caught:
        await future
    assert (caught.value.n_generated, caught.value.n_tokens) == (0, None)


async def answer(h: House, text: str = TEXT, context: str = "x") -> tuple[str, int]:
    """The answer, and how many tokens had to be computed for it."""
    told, done = await h.call(context, Turn((Message("user", text),)), Generation(5))
    return told, done.switch.recomputed


async def expected(root: Path, *texts: str) -> str:
    async with house(root) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        return [await answer(h, text) for text in texts][-1][0]


@on_a_loop
async def test_the_same_turn_goes_on_from_what_was_computed(tmp_path: Path) -> None:
    told = await expected(tmp_path / "whole", TEXT)
    async with house(tmp_path / "cut", **SLOW) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        before = h.service.show(APP, "x")
        await interrupt(h, long_turn())
        after = h.service.show(APP, "x")
        assert after.messages == before.messages and after.info.n_tokens == before.info.n_tokens
        assert sum(after.info.tiers) == after.info.n_tokens
        assert cells_used(h) >= 256
        again, done = await h.call("x", Turn((Message("user", TEXT),)), Generation(5))
        assert again == told
        assert done.switch.cells >= 256


@on_a_loop
async def test_another_turn_takes_what_it_has_in_common(tmp_path: Path) -> None:
    other = TEXT[:100] + "And what then? " + TEXT
    told = await expected(tmp_path / "whole", other, "go on")
    async with house(tmp_path / "cut", **SLOW) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        await interrupt(h, long_turn())
        await answer(h, other)
        assert (await answer(h, "go on"))[0] == told


@on_a_loop
async def test_what_else_is_done_with_the_context_sees_nothing_of_it(tmp_path: Path) -> None:
    told = await expected(tmp_path / "whole", "hello")
    async with house(tmp_path / "cut", **SLOW) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        await interrupt(h, long_turn())
        forked = await h.service.fork(APP, "x", name="y")
        assert sum(forked.tiers) == forked.n_tokens == h.service.show(APP, "x").info.n_tokens
        assert (await answer(h, "hello", "y"))[0] == told
        h.service.hint(APP, "x")
        await h.service.wait_idle()
        assert (await answer(h, "hello"))[0] == told
        await interrupt(h, long_turn())
        info = await h.service.truncate(APP, "x", n_tokens=forked.n_tokens, n_messages=None)
        assert sum(info.tiers) == info.n_tokens == forked.n_tokens
        assert (await answer(h, "hello"))[0] == told
        await interrupt(h, long_turn())
        await h.service.delete(APP, "x")


SAID = "What is this? " * 6


async def balanced(h: House, *contexts: str) -> None:
    """The books are clean, and each context's tokens are counted once."""
    await h.service.wait_idle()
    assert h.service.check() == []
    for info in (h.service.show(APP, context).info for context in contexts):
        assert sum(info.tiers) == info.n_tokens


@pytest.mark.parametrize("n_messages", [None, 3, 2, 1])
@on_a_loop
async def test_a_fork_of_a_beginning_sees_nothing_of_it(tmp_path: Path, n_messages: int | None) -> None:
    async with house(tmp_path / "cut", **SLOW) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        await answer(h, SAID)
        whole = await h.service.fork(APP, "x", name="whole", n_messages=n_messages)
        told = (await answer(h, "And that?", "whole"))[0]
        await interrupt(h, long_turn())
        forked = await h.service.fork(APP, "x", name="y", n_messages=n_messages)
        assert forked.n_tokens == whole.n_tokens <= h.service.show(APP, "x").info.n_tokens
        await balanced(h, "x", "y")
        assert (await answer(h, "And that?", "y"))[0] == told
        _, done = await h.call("x", Turn((Message("user", TEXT),)), Generation(5))
        assert done.switch.cells >= 256, "what was computed of the interrupted turn is lost"
        await balanced(h, "x", "y", "whole")


@pytest.mark.parametrize("n_messages", [0, 1, 2, 3])
@on_a_loop
async def test_a_truncation_drops_it(tmp_path: Path, n_messages: int) -> None:
    async with house(tmp_path / "cut", **SLOW) as h:
        await h.service.create(APP, name="x", system="Be brief.")
        await answer(h, SAID)
        await h.service.fork(APP, "x", name="y", n_messages=n_messages)
        await interrupt(h, long_turn())
        await h.service.truncate(APP, "x", n_tokens=None, n_messages=n_messages)
        await balanced(h, "x")
        assert h.tokens("x") == h.tokens("y")
        assert (await answer(h))[0] == (await answer(h, TEXT, "y"))[0]
        await balanced(h, "x", "y")


@pytest.mark.parametrize("named", [False, True])
@on_a_loop
async def test_a_conversation_that_is_sent_as_a_whole_goes_on_from_it(tmp_path: Path, named: bool) -> None:
    """The interrupted turn sits behind all messages of a context, which then goes on, is copied or is cut back."""
    async with house(tmp_path / "cut", **SLOW) as h:
        system = Message("system", "Be brief.")
        found = await h.service.create(APP, name="x", system=system.content) if named else None
        context = found.id if found else (await h.service.resolve(APP, [system])).context.id
        first = Turn((Message("user", SAID),) if named else (system, Message("user", SAID)))
        said, _ = await h.call(context, first, Generation(5))
        past = [system, Message("user", SAID), Message("assistant", said)]
        before = h.tokens(context)
        await interrupt(h, long_turn(), context=context)
        await balanced(h, context)

        cut = await h.service.resolve(APP, [*past[:2], Message("assistant", "another")])  # cut back, or copied
        assert cut.n_messages == 2 and (cut.context.id != context) is named
        assert h.tokens(cut.context.id) == before[: cut.context.n_tokens]
        await balanced(h, context, cut.context.id)

        same = await h.service.resolve(APP, [*past, Message("user", TEXT)])
        assert same.n_messages == 3 and same.context.id != context
        assert h.tokens(same.context.id) == before
        await balanced(h, context, same.context.id)
        fresh = await h.service.create(APP, name="fresh", system=system.content)
        await h.call(fresh.id, Turn((past[1],)), Generation(5))
        assert (await answer(h, TEXT, same.context.id))[0] == (await answer(h, TEXT, fresh.id))[0]
        await balanced(h, context, same.context.id, fresh.id)


@on_a_loop
async def test_a_conversation_that_is_sent_again_computes_only_the_rest(tmp_path: Path) -> None:
    async with house(tmp_path / "cut", **SLOW) as h:
        history = [Message("system", "Be brief."), Message("user", TEXT)]
        context = (await h.service.resolve(APP, history)).context.id
        await interrupt(h, CallSpec(Turn(tuple(history)), Generation(5)), context=context)
        again = await h.service.resolve(APP, history)
        assert (again.context.id, again.n_messages) == (context, 0)
        _, done = await h.call(context, Turn(tuple(history)), Generation(5))
        assert done.switch.cells >= 256
        await balanced(h, context)


@on_a_loop
async def test_it_is_swapped_out_with_its_context(tmp_path: Path) -> None:
    told = await expected(tmp_path / "whole", TEXT)
    async with house(tmp_path / "cut", **SLOW) as h:
        for name in ("x", "y"):
            await h.service.create(APP, name=name, system="Be brief.")
        await interrupt(h, long_turn())
        await h.call("y", Turn((Message("user", TEXT + TEXT[:200]),)), Generation(5))
        await h.service.wait_idle()
        assert (await answer(h))[0] == told
