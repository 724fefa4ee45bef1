"""LoRA adapters in the service: whose KV may be used with which, who may load what, and what is kept."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmaas.calls import CallSpec, Generation, Terms, Turn
from llmaas.engine.fake import fake_adapter
from llmaas.errors import (
    AdapterMismatch,
    AdapterUnreadable,
    BadRequest,
    Cancelled,
    Expired,
    UnknownAdapter,
)
from llmaas.records import Message
from tests.support.books import Book
from tests.support.loop import on_a_loop
from tests.support.oracle import Oracle
from tests.support.service_house import APP, House, house

SIZE = 1000
NAMES = ("red", "blue")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "adapters").mkdir()
    made = {name: tmp_path / "adapters" / name for name in (*NAMES, "green")}
    for name, path in made.items():
        path.write_bytes(fake_adapter(name.encode() * (SIZE // len(name))))
    return made


def two(files: dict[str, Path]) -> dict[str, Any]:
    """Settings with two adapters."""
    return {"adapters": tuple((name, files[name]) for name in NAMES)}


def using(adapter: str) -> Terms:
    return Terms(adapter=adapter)


def adapter_of(h: House, context: str) -> str:
    return h.service.info(APP, context).adapter


class Reader:
    """What a context must answer, told by an engine that nobody disturbs."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._oracle = Oracle(1024, adapters=files)
        self._books: dict[str, Book] = {}

    def expect(self, context: str, text: str, n: int, adapter: str) -> str:
        book = replace(self._books.get(context, Book(context)), adapter=adapter)
        expected = self._oracle.generate(book, [Message("user", text)], None, Generation(n))
        assert expected is not None
        self._books[context] = expected.after()
        return expected.text

    def forked(self, context: str, name: str) -> None:
        self._books[name] = self._books[context]


@on_a_loop
async def test_contexts_with_different_adapters_take_turns_and_each_says_what_it_would_say_alone(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    reader, rng = Reader(files), random.Random(5)
    switches = {"pool": 0, "disk": 0}
    # Cells for two of the six contexts; a pool for some of them, so that they come from DISK as well.
    async with house(tmp_path / "s", engine={"n_cells": 1024}, pool_bytes=60_000, **two(files)) as h:
        names = [f"c{i}" for i in range(6)]
        for name in names:
            await h.service.create(APP, name=name, system=None)

        async def talk(name: str) -> None:
            adapter = ""
            for turn in range(6):
                text = f"{name} {turn} " + "x" * rng.randrange(10, 120)
                if rng.random() < 0.4:
                    adapter = rng.choice(["", *NAMES])
                    terms = using(adapter)
                else:
                    terms = Terms()
                said, done = await h.say(name, text, 12, terms=terms)
                assert said == reader.expect(name, text, 12, adapter), (name, turn, adapter, done.switch)
                assert adapter_of(h, name) == adapter
                for tier in switches:
                    switches[tier] += getattr(done.switch, tier)

        await asyncio.gather(*map(talk, names))
        await h.service.wait_idle()
        assert h.service.check() == []
    assert min(switches.values()) > 0, "nothing was swapped"


@on_a_loop
async def test_after_a_restart_contexts_go_on_from_disk_with_their_adapters(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    reader = Reader(files)
    text = "something long " * 20
    async with house(tmp_path / "s", **two(files)) as h:
        await h.service.create(APP, name="a", system=None, adapter="red")
        assert (await h.say("a", text))[0] == reader.expect("a", text, 8, "red")
        await h.service.create(APP, name="b", system=None)
        assert (await h.say("b", text, terms=using("blue")))[0] == reader.expect("b", text, 8, "blue")
    async with house(tmp_path / "s", **two(files)) as h:
        assert [adapter_of(h, name) for name in "ab"] == ["red", "blue"]
        for name, adapter in (("a", "red"), ("b", "blue")):
            said, done = await h.say(name, "and?")
            assert said == reader.expect(name, "and?", 8, adapter)
            assert done.switch.disk > 300, "its KV was on disk, and was used"


@on_a_loop
async def test_a_fork_keeps_the_adapter_and_takes_another_one_with_the_same_tokens(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    reader, text = Reader(files), "a document " * 20
    async with house(tmp_path / "s", **two(files)) as h:
        await h.service.create(APP, name="a", system=None, adapter="red")
        await h.say("a", text)
        reader.expect("a", text, 8, "red")
        for name in ("f", "g"):
            await h.service.fork(APP, "a", name=name)
            reader.forked("a", name)
        assert adapter_of(h, "f") == "red"
        said, done = await h.say("f", "well?")
        assert said == reader.expect("f", "well?", 8, "red")
        assert done.switch.recomputed == 0
        said, done = await h.say("g", "well?", terms=using("blue"))
        assert said == reader.expect("g", "well?", 8, "blue")
        assert (done.switch.cells, done.switch.pool, done.switch.disk) == (0, 0, 0), "KV of another adapter"
        assert (await h.say("a", "and?"))[0] == reader.expect("a", "and?", 8, "red"), "the original goes on"


@on_a_loop
async def test_equal_beginnings_are_shared_only_with_equal_adapters(tmp_path: Path, files: dict[str, Path]) -> None:
    text = "a preface that many have " * 12
    async with house(tmp_path / "s", **two(files)) as h:
        for name, adapter in (("a", "red"), ("b", "red"), ("c", "blue"), ("d", "")):
            await h.service.create(APP, name=name, system=None, adapter=adapter)
        await h.say("a", text)
        await h.service.wait_idle()
        found = {name: (await h.say(name, text))[1].switch.pool for name in "bcd"}
        assert found["b"] > 250
        assert found["c"] == found["d"] == 0


@on_a_loop
async def test_back_on_the_first_adapter_chunks_that_a_fork_kept_are_used(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    reader, text = Reader(files), "a document " * 20
    async with house(tmp_path / "s", **two(files)) as h:
        await h.service.create(APP, name="a", system=None)
        await h.say("a", text, terms=using("red"))
        reader.expect("a", text, 8, "red")
        await h.service.wait_idle()
        await h.service.fork(APP, "a", name="f")
        assert (await h.say("a", "one", terms=using("blue")))[0] == reader.expect("a", "one", 8, "blue")
        said, done = await h.say("a", "two", terms=using("red"))
        assert said == reader.expect("a", "two", 8, "red")
        assert done.switch.pool + done.switch.disk >= 192


async def slowly(h: House, context: str, terms: Terms) -> tuple[int, asyncio.Future[Any]]:
    turn = Turn((Message("user", "a long question " * 30),))
    return h.service.submit(APP, context, CallSpec(turn, Generation(400), terms), lambda piece: None)


@on_a_loop
async def test_a_call_that_fails_or_is_cancelled_before_it_said_anything_leaves_the_adapter(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    reader = Reader(files)
    slow: Callable[[int], float] = lambda tokens: 0.05 if tokens > 100 else 0.0  # noqa: E731
    async with house(tmp_path / "s", engine={"step_time": slow}, **two(files)) as h:
        await h.service.create(APP, name="a", system=None, adapter="red")
        assert (await h.say("a", "hello"))[0] == reader.expect("a", "hello", 8, "red")
        request, reply = await slowly(h, "a", using("blue"))
        await asyncio.sleep(0.02)
        h.service.cancel(request)  # type: ignore[arg-type]
        with pytest.raises(Cancelled):
            await reply
        assert adapter_of(h, "a") == "red"
    async with house(tmp_path / "s", **two(files)) as h:
        assert adapter_of(h, "a") == "red"
        assert (await h.say("a", "still?"))[0] == reader.expect("a", "still?", 8, "red")


@on_a_loop
async def test_a_call_that_is_cancelled_after_it_began_to_speak_leaves_the_new_adapter(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    async with house(tmp_path / "s", engine={"step_time": lambda tokens: 0.002}, **two(files)) as h:
        await h.service.create(APP, name="a", system=None, adapter="red")
        heard = asyncio.Event()
        turn = Turn((Message("user", "hello"),))
        request, reply = h.service.submit(
            APP, "a", CallSpec(turn, Generation(400), using("blue")), lambda p: heard.set()
        )
        await heard.wait()
        h.service.cancel(request)
        with pytest.raises(Cancelled):
            await reply
        assert adapter_of(h, "a") == "blue"
    async with house(tmp_path / "s", **two(files)) as h:
        assert adapter_of(h, "a") == "blue"


@on_a_loop
async def test_unknown_names_are_refused_at_once(tmp_path: Path, files: dict[str, Path]) -> None:
    async with house(tmp_path / "s", **two(files)) as h:
        with pytest.raises(UnknownAdapter):
            await h.service.create(APP, name="a", system=None, adapter="green")
        await h.service.create(APP, name="a", system=None)
        with pytest.raises(UnknownAdapter):
            h.service.submit(APP, "a", CallSpec(Turn(prompt="x"), None, using("green")), lambda p: None)
        with pytest.raises(UnknownAdapter):
            await h.service.adapters.remove("green")


@on_a_loop
async def test_a_context_whose_adapter_is_gone_says_so_and_goes_on_when_it_is_back(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    reader = Reader(files)
    async with house(tmp_path / "s") as h:
        await h.service.adapters.add("red", str(files["red"]))
        await h.service.create(APP, name="a", system=None, adapter="red")
        assert (await h.say("a", "hello " * 40))[0] == reader.expect("a", "hello " * 40, 8, "red")
        await h.service.adapters.remove("red")
    async with house(tmp_path / "s") as h:
        assert h.service.adapters.infos(paths=True) == []
        with pytest.raises(UnknownAdapter, match="'a' uses the adapter 'red'") as refused:
            await h.say("a", "again")
        assert "register it again" in refused.value.hint.lower()
        assert len(h.tokens("a")) > 240
        await h.service.adapters.add("red", str(files["red"]))
        assert (await h.say("a", "again"))[0] == reader.expect("a", "again", 8, "red")
        await h.service.adapters.remove("red")
        assert (await h.say("a", "bare", terms=using("")))[0] == reader.expect("a", "bare", 8, "")


@on_a_loop
async def test_what_was_registered_at_run_time_is_there_after_a_restart_and_a_changed_file_is_noticed(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    async with house(tmp_path / "s") as h:
        for name in NAMES:
            await h.service.adapters.add(name, str(files[name]))
        before = h.service.adapters.infos(paths=True)
        for name in NAMES:
            await h.service.create(APP, name=name, system=None, adapter=name)
            await h.say(name, "hello " * 40)
    files["blue"].write_bytes(files["green"].read_bytes())
    async with house(tmp_path / "s") as h:
        after = h.service.adapters.infos(paths=True)
        assert [(info.name, info.path) for info in after] == [(info.name, info.path) for info in before]
        assert [a.fingerprint == b.fingerprint for a, b in zip(after, before, strict=True)] == [False, True]
        assert (await h.say("red", "so?"))[1].switch.disk > 200
        assert (await h.say("blue", "so?"))[1].switch.disk == 0


@on_a_loop
async def test_a_name_that_gets_another_file_voids_what_was_computed_with_the_old_one(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    reader = Reader(files)
    async with house(tmp_path / "s", **two(files)) as h:
        await h.service.create(APP, name="a", system=None, adapter="red")
        assert (await h.say("a", "hello " * 40))[0] == reader.expect("a", "hello " * 40, 8, "red")
        await h.service.adapters.add("red", str(files["green"]))
        said, done = await h.say("a", "so?")
        assert said == reader.expect("a", "so?", 8, "green")
        assert (done.switch.cells, done.switch.pool, done.switch.disk) == (0, 0, 0)


@on_a_loop
async def test_an_adapter_that_cannot_be_loaded_fails_its_own_call_and_no_other(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    budget = SIZE * 3 // 2  # room for one
    async with house(tmp_path / "s", adapter_bytes=budget, **two(files)) as h:
        for name, adapter in (("a", "red"), ("b", "blue"), ("c", "")):
            await h.service.create(APP, name=name, system=None, adapter=adapter)
        await h.say("b", "hello")
        files["red"].rename(files["red"].with_name("elsewhere"))
        replies = await asyncio.gather(*(h.say(name, "hello") for name in "abc"), return_exceptions=True)
        assert isinstance(replies[0], AdapterUnreadable)
        assert not isinstance(replies[1], BaseException) and not isinstance(replies[2], BaseException)
        files["red"].write_bytes(files["green"].read_bytes())
        with pytest.raises(AdapterUnreadable, match="has changed"):
            await h.say("a", "hello")
        files["red"].with_name("elsewhere").rename(files["red"])
        await h.say("a", "hello")


@on_a_loop
async def test_loaded_adapters_stay_within_their_budget_and_those_in_use_stay_loaded(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    def loaded() -> list[str]:
        return [info.name for info in h.service.adapters.infos(paths=False) if info.loaded]

    slow = {"step_time": lambda tokens: 0.002}
    async with house(tmp_path / "s", engine=slow, adapter_bytes=SIZE * 5 // 2, quantum=100, **two(files)) as h:
        await h.service.adapters.add("green", str(files["green"]))
        assert loaded() == ["blue", "green"], "red was used longest ago"
        for name in files:
            await h.service.create(APP, name=name, system=None, adapter=name)
        running = [asyncio.ensure_future(h.say(name, "hello", 200)) for name in ("blue", "red")]
        await asyncio.sleep(0.05)
        assert loaded() == ["blue", "red"]
        with pytest.raises(Expired):
            await h.say("green", "hello", terms=Terms(deadline_s=0.02))
        _, done = await h.say("green", "hello")
        assert len(loaded()) == 2
        assert done.queue_ms > 0 and not all(one.done() for one in running), "it had its turn before both had ended"
        await asyncio.gather(*running)


@on_a_loop
async def test_with_room_for_one_adapter_all_calls_take_turns_and_say_what_they_would_say_alone(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    reader = Reader(files)
    names = [f"{adapter or 'bare'}-{i}" for i in range(2) for adapter in ("", *files)]
    async with house(tmp_path / "s", adapter_bytes=SIZE * 3 // 2, quantum=10) as h:
        for name, path in files.items():
            await h.service.adapters.add(name, str(path))
        for name in names:
            adapter = name.partition("-")[0].replace("bare", "")
            await h.service.create(APP, name=name, system=None, adapter=adapter)
        said = await asyncio.gather(*(h.say(name, name, 100) for name in names))
        for name, (text, _) in zip(names, said, strict=True):
            assert text == reader.expect(name, name, 100, name.partition("-")[0].replace("bare", ""))
        assert sum(done.n_paused for _, done in said) >= len(files)
        assert h.service.adapters.cache.loads < 100


@on_a_loop
async def test_an_answer_whose_adapter_cannot_be_loaded_again_fails_and_is_taken_back(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    slow = {"step_time": lambda tokens: 0.002}
    async with house(tmp_path / "s", engine=slow, adapter_bytes=SIZE * 3 // 2, quantum=20, **two(files)) as h:
        for name in NAMES:
            await h.service.create(APP, name=name, system=None, adapter=name)
        red = asyncio.ensure_future(h.say("red", "hello", 300))
        await asyncio.sleep(0.03)
        files["red"].unlink()
        await h.say("blue", "hello", 5)
        with pytest.raises(AdapterUnreadable):
            await red
        assert h.tokens("red") == []


@on_a_loop
async def test_what_cannot_serve_is_refused_when_it_is_registered(tmp_path: Path, files: dict[str, Path]) -> None:
    other, text = tmp_path / "other", tmp_path / "text"
    other.write_bytes(fake_adapter(b"x", model="another"))
    text.write_text("no adapter")
    fifo, sparse = tmp_path / "fifo", tmp_path / "sparse"
    os.mkfifo(fifo)
    with sparse.open("wb") as file:
        file.truncate(1 << 40)  # hours to read
    async with house(tmp_path / "s", adapter_bytes=SIZE // 2) as h:
        for name, path, error in (
            ("red", files["red"], BadRequest),
            ("no/name", other, BadRequest),
            ("", other, BadRequest),
            ("red", Path("relative"), BadRequest),
            ("red", other, AdapterMismatch),
            ("red", text, AdapterUnreadable),
            ("red", tmp_path / "gone", AdapterUnreadable),
            ("red", fifo, AdapterUnreadable),
            ("red", Path("/dev/zero"), AdapterUnreadable),
            ("red", tmp_path, AdapterUnreadable),
            ("red", sparse, BadRequest),
        ):
            with pytest.raises(error):
                await asyncio.wait_for(h.service.adapters.add(name, str(path)), 10)
        assert h.service.adapters.infos(paths=True) == h.store.adapters.all() == []
