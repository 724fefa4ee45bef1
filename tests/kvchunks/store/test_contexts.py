"""Contexts, their spans and their adapters: nothing is lost, and nothing is done by halves."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from llmaas.errors import BadRequest, ContextExists, StoreFailed, UnknownContext
from llmaas.kvchunks.store.store import AdapterRow, Span, Store
from llmaas.records import ContextId
from tests.support.store_data import glue, key, row


def test_a_conversation_comes_back_in_order_after_reopening(root: Path) -> None:
    first = [glue(1), Span((2, 3), "user", "hi \N{SNOWMAN} \0 there"), glue(4)]
    second = [Span((5, 6), "assistant", "yes", open=True)]
    with Store(root) as store:
        store.create_context(row("a"), first)
        assert store.append(ContextId("a"), second, expect=4, now=20.0) == 6
    with Store(root) as store:
        assert store.spans(ContextId("a")) == first + second
        assert store.tokens(ContextId("a")) == array("i", [1, 2, 3, 4, 5, 6])
        assert store.contexts() == [replace(row("a"), n_tokens=6, last_used=20.0)]


def test_a_lost_update_is_refused(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2)])
        with pytest.raises(StoreFailed, match="holds 2 tokens where 1 were expected"):
            store.append(ContextId("a"), [glue(3)], expect=1, now=0.0)
        assert list(store.tokens(ContextId("a"))) == [1, 2]


def test_a_conversation_is_rewritten_as_a_whole_or_not_at_all(root: Path) -> None:
    new = [glue(7), Span((8, 9), "user", "again")]
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2)])
        store.create_context(row("b"), [glue(3)])
        with pytest.raises(StoreFailed, match="holds 2 tokens where 1 were expected"):
            store.rewrite(ContextId("a"), new, expect=1, now=0.0)
        with pytest.raises(OverflowError):
            store.rewrite(ContextId("a"), [glue(7), glue(1 << 40)], expect=2, now=0.0)
        assert store.spans(ContextId("a")) == [glue(1, 2)]
        store.rewrite(ContextId("a"), new, expect=2, now=5.0)
    with Store(root) as store:
        assert store.spans(ContextId("a")) == new and store.spans(ContextId("b")) == [glue(3)]
        assert store.contexts()[0] == replace(row("a"), n_tokens=3, last_used=5.0)


def test_a_name_is_taken_once_per_app(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a", "todo"))
        with pytest.raises(ContextExists, match="todo"):
            store.create_context(row("b", "todo"), [glue(1)])
        with pytest.raises(ContextExists, match="todo"):
            store.fork(ContextId("a"), row("b", "todo"))
        store.create_context(row("b", "todo", app="1000/mail"))
        assert [r.id for r in store.contexts()] == ["a", "b"]


def test_a_cut_inside_a_message_leaves_glue_and_a_cut_at_its_end_leaves_the_message(root: Path) -> None:
    said = Span((3, 4, 5), "assistant", "abc", open=True)
    with Store(root) as store:
        store.create_context(row("a"), [glue(1, 2), said, glue(6)])
        store.truncate(ContextId("a"), 5, 30.0)
        assert store.spans(ContextId("a")) == [glue(1, 2), said]
        store.truncate(ContextId("a"), 4, 31.0)
        assert store.spans(ContextId("a")) == [glue(1, 2), glue(3, 4)]
        with pytest.raises(BadRequest, match="has 4 tokens"):
            store.truncate(ContextId("a"), 5, 32.0)
        with pytest.raises(BadRequest):
            store.truncate(ContextId("a"), -1, 32.0)
        assert store.contexts()[0].last_used == 31.0


def test_an_unknown_context_is_named_in_the_error(root: Path) -> None:
    ghost = ContextId("ghost")
    with Store(root) as store:
        for call in (
            lambda: store.tokens(ghost),
            lambda: store.spans(ghost),
            lambda: store.append(ghost, [glue(1)], expect=0, now=0.0),
            lambda: store.truncate(ghost, 0, 0.0),
            lambda: store.fork(ghost, row("b")),
            lambda: store.delete_context(ghost),
        ):
            with pytest.raises(UnknownContext, match="ghost"):
                call()
        assert store.contexts() == []


def test_deleting_a_context_forgets_its_tokens_and_keeps_its_chunks(root: Path) -> None:
    with Store(root) as store:
        store.create_context(row("a"), [glue(1)])
        store.put(ContextId("a"), [(key(1), 64, b"abc")])
        store.delete_context(ContextId("a"))
        assert store.contexts() == []
        assert [k for k, *_ in store.chunks()] == [key(1)]
        store.create_context(row("a"))
        assert list(store.tokens(ContextId("a"))) == []


def test_a_context_keeps_its_adapter_and_an_adapter_its_file(root: Path) -> None:
    mail, old = AdapterRow("mail", "/somewhere/mail.gguf", "f1"), AdapterRow("old", "/old.gguf", "f0")
    with Store(root) as store:
        store.create_context(replace(row("a"), adapter="old"), [glue(1, 2)])
        store.create_context(row("b"))
        store.append(ContextId("a"), [], expect=2, now=11.0, adapter="mail")
        store.append(ContextId("a"), [glue(3)], expect=2, now=12.0)
        store.append(ContextId("b"), [glue(3)], expect=0, now=12.0, adapter="old")
        store.append(ContextId("b"), [], expect=1, now=12.0, adapter="")
        for adapter in (old, mail, AdapterRow("mail", "/else.gguf", "f2"), mail):
            store.adapters.save(adapter)
        store.adapters.delete("old")
        store.adapters.delete("never there")
    with Store(root) as store:
        assert {found.id: found.adapter for found in store.contexts()} == {"a": "mail", "b": ""}
        assert store.adapters.all() == [mail]
        store.fork(ContextId("a"), replace(row("c"), adapter="mail"))
        assert store.contexts()[-1].adapter == "mail"
        assert store.check().problems == ()
