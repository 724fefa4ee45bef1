"""Which context a word means."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from llmaas.cli.contexts import matching, meant
from llmaas.cli.ctx import listing, run
from llmaas.cli.main import build_parser
from llmaas.errors import BadRequest, UnknownContext
from llmaas.records import AppId, ContextId, ContextInfo


def context(id: str, name: str, app: str = "1/cli") -> ContextInfo:
    return ContextInfo(ContextId(id), AppId(app), name, 0, 0, 0.0, 0.0)


A = context("aaaa000000000001", "notes")
B = context("aaaa000000000002", "mail")
C = context("cccc000000000003", "aaaa000000000001")


def test_an_id_wins_over_a_name_and_a_name_over_a_part_of_an_id() -> None:
    assert matching("aaaa000000000001", [A, B, C]) is A
    assert matching("aaaa000000000001", [B, C]) is C, "the context of that id is another app's, or gone"
    assert matching("cccc000000000003", [A, B, C]) is C
    assert matching("aaaa", [A, context("dddd000000000004", "aaaa")]).id == "dddd000000000004"


def test_a_part_of_an_id_is_enough_if_it_is_long_and_alone() -> None:
    assert matching("cccc", [A, B, C]) is C
    assert matching("ccc", [A, B, C]) is None


def test_what_fits_two_is_refused() -> None:
    with pytest.raises(BadRequest, match="aaaa000000000001 of 1/cli, aaaa000000000002"):
        matching("aaaa", [A, B])
    with pytest.raises(BadRequest, match="several"):
        matching("mail", [B, context("dddd000000000004", "mail", "1/other")])


def test_what_fits_none_is_none_or_unknown() -> None:
    assert matching("zzz", [A, B]) is None
    with pytest.raises(UnknownContext, match="'zzz'"):
        meant("zzz", [A, B])


def test_the_list_stays_readable_with_long_names() -> None:
    names = ["notes", "a name of exactly forty characters here.", "x" * 128]
    infos = [ContextInfo(ContextId(f"{n:016x}"), AppId("0/a"), name, 1, 1, 0.0, 0.0) for n, name in enumerate(names)]
    lines = listing(infos, 0.0, with_app=True, stream=io.StringIO()).splitlines()
    assert max(map(len, lines)) < 120
    assert names[1] in lines[2] and "x" * 39 + "\N{HORIZONTAL ELLIPSIS} " in lines[3] and "x" * 40 not in lines[3]


def test_anonymous_contexts_are_listed_with_all_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    anonymous = replace(context("dddd000000000004", "~dddd000000000004"), anonymous=True)
    known = [A, anonymous]

    class Client:
        def contexts(self, *, everyone: bool) -> list[ContextInfo]:
            return known

    @contextlib.contextmanager
    def connected(args: argparse.Namespace, *, admin: bool) -> Iterator[Client]:
        yield Client()

    def listed(*args: str) -> str:
        assert run(build_parser("ctx").parse_args(["ctx", "ls", *args])) == 0
        return capsys.readouterr().out

    monkeypatch.setattr("llmaas.cli.ctx.connected", connected)
    assert "notes" in listed() and "~dddd" not in listed()
    assert "notes" in listed("--all") and "~dddd" in listed("--all")
    assert [c["anonymous"] for c in json.loads(listed("--json"))] == [False]
    assert [c["anonymous"] for c in json.loads(listed("--json", "--all"))] == [False, True]
    known.remove(A)
    assert "'llmaas ctx ls --all' lists 1 anonymous" in listed()
