"""Contexts as objects, and questions with one answer, in both clients."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from llmaas.api import questions
from llmaas.api.async_client import AsyncClient, AsyncClientContext
from llmaas.api.client import Client, ClientContext
from llmaas.calls import Priority, Sampling, Terms
from llmaas.errors import AnswerIncomplete, BadRequest, UnknownContext
from llmaas.records import Message
from tests.support.loop import on_a_loop
from tests.support.scripted import serving_in_a_thread

SCHEMA = {"type": "integer"}


def test_a_context_is_made_once_and_found_after(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        inbox = client.context("inbox", system="Be brief.")
        assert (inbox.name, inbox.info.n_messages) == ("inbox", 1)
        assert client.context("inbox", system="Be long.").id == inbox.id
        assert inbox.show().messages == (Message("system", "Be brief."),)
        with Client(path, app="other") as other:
            assert other.context("inbox").id != inbox.id
        with pytest.raises(BadRequest, match="name"):
            client.context("")


def test_a_question_has_an_answer(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        inbox = client.context("inbox")
        inbox.append("count 0")
        assert inbox.ask("count 3") == "0 1 2 " == client.ask("inbox", [Message("user", "count 3")])
        assert inbox.ask_json("count 1", SCHEMA) == 0
        assert [piece.text for piece in inbox.generate("count 2")] == ["0 ", "1 "]
        inbox.hint()
        assert inbox.truncate(n_messages=0).name == "inbox"
        inbox.delete()
        with pytest.raises(UnknownContext):
            inbox.ask("count 1")


def test_what_is_tried_in_a_fork_leaves_nothing_behind(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        inbox = client.context("inbox")
        with inbox.forked() as draft:
            assert draft.ask("count 1") == "0 "
            assert draft.id != inbox.id
        with pytest.raises(ZeroDivisionError), inbox.forked() as draft:
            raise ZeroDivisionError
        with inbox.forked() as draft:
            draft.delete()
        with inbox.forked():
            client.close()
        with Client(path, app="mail") as again:
            assert len(again.contexts()) == 2, "the last fork's client was closed"
            assert again.context("inbox").fork(name="copy").name == "copy"


@on_a_loop
async def test_the_async_client_has_the_same(path: Path) -> None:
    with serving_in_a_thread(path):
        async with await AsyncClient.connect(path, app="mail") as client:
            inbox = await client.context("inbox", system="Be brief.")
            await inbox.append("count 0")
            assert await inbox.ask("count 2") == "0 1 " == await client.ask("inbox", "count 2")
            assert await inbox.ask_json("count 1", SCHEMA) == 0
            async with inbox.forked() as draft:
                assert [piece.text async for piece in draft.generate("count 1")] == ["0 "]
            assert [info.id for info in await client.contexts()] == [inbox.id]
            assert repr(inbox) == f"<AsyncClientContext 'inbox' ({inbox.id})>"


def test_priority_and_temperature_go_before_terms_and_sampling(path: Path) -> None:
    with serving_in_a_thread(path) as there, Client(path, app="mail") as client:
        inbox = client.context("inbox")
        terms, sampling = Terms(priority=7, deadline_s=60.0), Sampling(temperature=0.1, seed=3)
        inbox.ask("count 1", priority=Priority.BACKGROUND, temperature=0.9, terms=terms, sampling=sampling)
        inbox.append("count 1", priority=6, terms=terms)
        inbox.ask("count 1", priority=9, temperature=0.0, terms=terms, sampling=sampling)

        async def seen(backend: object, server: object) -> tuple[object, object]:
            return backend.terms, backend.generations  # type: ignore[attr-defined]

        asked, generations = there(seen)
        assert asked == [Terms(8, 60.0), Terms(6, 60.0), Terms(9, 60.0)]
        assert [g and g.sampling.temperature for g in generations] == [0.9, None, 0.0]
        assert generations[0].sampling.seed == 3
        with pytest.raises(BadRequest, match="temperature"):
            inbox.ask("count 1", temperature=-1.0)
        with pytest.raises(BadRequest, match="priority"):
            inbox.append("count 1", priority=10)


def test_an_answer_that_is_no_whole_json_is_an_error(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        inbox = client.context("inbox")
        with pytest.raises(BadRequest):
            inbox.ask_json("count 1", {"type": object()})
        with pytest.raises(BadRequest):
            inbox.ask_json("count 1", "x" * 100_000)
        stubborn = client.generate("inbox", prompt="stubborn", max_tokens=1)
        stubborn.cancel()
        assert stubborn.done.reason.value == "length"
        with pytest.raises(AnswerIncomplete, match="3 tokens"):
            questions.ask_json("inbox", "x", SCHEMA).read("[1,", stubborn.done)


def test_methods_of_contexts_are_those_of_clients_without_the_context() -> None:
    for context, client in ((ClientContext, Client), (AsyncClientContext, AsyncClient)):
        for name in ("append", "generate", "ask", "ask_json", "truncate", "show", "hint", "delete"):
            mine, theirs = getattr(context, name), getattr(client, name)
            assert mine.__doc__ == theirs.__doc__ is not None
            expected = [p for p in inspect.signature(theirs).parameters.values() if p.name != "context"]
            assert list(inspect.signature(mine).parameters.values()) == expected
