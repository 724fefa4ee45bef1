"""llmaas top: what it asks, what it draws, and what its keys do, on a terminal of its own."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmaas.api.client import Client
from llmaas.api.model_list import ListedModel
from llmaas.cli.timeline import trace
from llmaas.cli.top.sample import Sample
from llmaas.cli.top.view import SORTS, Screen, picture
from llmaas.clock import ManualClock
from llmaas.errors import Cancelled
from llmaas.records import AppId, ContextId, ContextInfo, RequestInfo, RequestSpan
from llmaas.weights_tier import WeightsTier
from tests.cli.conftest import COMMAND, Daemon, Run, clean_environ

HELLO = [{"role": "user", "content": "Tell me a very long story."}]


def call(number: int, state: str = "running", name: str = "inbox", **fields: Any) -> RequestInfo:
    ended = 2000.0 if state == "ended" else None
    spans = (RequestSpan("queued", 0.0, 5.0), RequestSpan("disk", 5.0, 9.0, 64), RequestSpan("decode", 9.0, ended, 7))
    values = {
        "context": ContextId("c" * 16),
        "outcome": "stop" if state == "ended" else "",
        "spans": spans,
        "submitted": 1000.0 + number,
        **fields,
    }
    return RequestInfo(number, AppId("1000/mail"), name=name, op="generate", priority=5, state=state, **values)


def context(name: str, n: int, tiers: tuple[int, int, int, int] = (0, 0, 0, 9)) -> ContextInfo:
    return ContextInfo(ContextId(name), AppId("1000/mail"), name, n, 1, 0.0, float(n), tiers)


class ScriptedDaemon:
    """Its list of contexts takes ``slow`` seconds of the clock."""

    def __init__(self, clock: ManualClock, slow: float = 0.0) -> None:
        self.clock, self.slow = clock, slow
        self.calls: list[RequestInfo] = []
        self.after: list[int] = []
        self.generated = self.lists = 0

    def stats(self) -> dict[str, Any]:
        return {
            "model": "a model",
            "contexts": 2,
            "cells": {"used": 100, "total": 200},
            "pool_bytes": {"used": 1 << 20, "budget": 1 << 21},
            "counts": {"tokens_generated": self.generated},
            "weights": {"tier": "PAGES"},
        }

    def contexts(self, everyone: bool = False) -> list[ContextInfo]:
        self.clock.advance(self.slow)
        self.lists += 1
        return [context("short", 3), context("long", 300, (30, 100, 170, 0))]

    def requests(self, everyone: bool = False, *, after: int = 0) -> list[RequestInfo]:
        assert everyone
        self.after.append(after)
        return [each for each in self.calls if each.call > after]


def drawn(sample: Sample, screen: Screen, height: int = 40) -> str:
    console = Console(width=120, force_terminal=False, record=True, file=io.StringIO())
    console.print(picture(sample, screen, 1010.0, height))
    return console.export_text()


def test_the_picture_shows_calls_contexts_and_how_full_the_tiers_are() -> None:
    clock = ManualClock()
    daemon, sample = ScriptedDaemon(clock), Sample()
    daemon.calls = [call(1, "ended"), call(2)]
    sample.read(daemon, clock.now)
    daemon.generated = 50
    clock.advance(2.0)
    sample.read(daemon, clock.now)
    text = drawn(sample, Screen())
    for words in (
        "a model",
        "25 tokens/s",
        "100 of 200",
        "1.0 MiB of 2.0 MiB",
        "1000/mail",
        "disk 4 ms",
        "a model   PAGES",
        "short",
        "300",
    ):
        assert words in text, words
    assert text.index("long") < text.index("short"), "last used first"
    assert sum(map(len, text.splitlines())) and max(map(len, text.splitlines())) <= 120


def test_of_several_models_it_shows_where_they_are_and_how_long_loading_takes() -> None:
    clock = ManualClock()
    daemon, sample = ScriptedDaemon(clock), Sample(served_as="small")
    sample.read(daemon, clock.now)
    assert "models" not in drawn(sample, Screen())
    sample.models = [
        ListedModel("small", "s.gguf", 1, "ready", tier=WeightsTier.HELD),
        ListedModel("co\x1b[2Jder", "c.gguf", 1, "away", expected_s=2.2, tier=WeightsTier.DISK),
        ListedModel("new", "n.gguf", 1, "starting"),
    ]
    text = drawn(sample, Screen())
    assert (
        re.search(r"models +small HELD ready +co.*der DISK away, 3 s to load +new starting", text)
        and "\x1b[2J" not in text
    )
    assert len(drawn(sample, Screen(), 24).splitlines()) <= 24


@pytest.mark.parametrize("height", [1, 12, 24])
def test_the_picture_fits_into_the_terminal(height: int) -> None:
    clock = ManualClock()
    daemon, sample = ScriptedDaemon(clock), Sample()
    daemon.calls = [call(n, "ended") for n in range(1, 90)] + [call(n) for n in range(90, 130)]
    sample.read(daemon, clock.now)
    sample.contexts = [context(f"c{n}", n) for n in range(500)]
    assert len(drawn(sample, Screen(), height).splitlines()) <= max(height, 16)


def test_what_an_app_called_its_context_cannot_control_the_terminal() -> None:
    clock = ManualClock()
    daemon, sample = ScriptedDaemon(clock), Sample()
    daemon.calls = [call(1, name="\x1b[2Jgone")]
    sample.read(daemon, clock.now)
    assert "\x1b[2J" not in drawn(sample, Screen()) and "gone" in drawn(sample, Screen())


def test_calls_that_have_ended_are_asked_for_once_and_running_ones_again() -> None:
    clock = ManualClock()
    daemon, sample = ScriptedDaemon(clock), Sample()
    daemon.calls = [call(1, "ended"), call(2), call(3, "ended")]
    sample.read(daemon, clock.now)
    assert [each.call for each in sample.running] == [2] and {each.call for each in sample.ended} == {1, 3}
    daemon.calls = [call(1, "ended"), call(2, "ended"), call(3, "ended"), call(4)]
    sample.read(daemon, clock.now)
    assert daemon.after == [0, 1]
    assert [each.call for each in sample.running] == [4] and {each.call for each in sample.ended} == {1, 2, 3}
    sample.read(daemon, clock.now)
    assert daemon.after[-1] == 3


def test_a_long_list_of_contexts_is_read_more_rarely() -> None:
    clock = ManualClock()
    daemon, sample = ScriptedDaemon(clock, slow=0.5), Sample()
    for _ in range(10):
        sample.read(daemon, clock.now)
        clock.advance(1.0)
    assert daemon.lists == 1


def test_keys_choose_a_call_and_how_contexts_are_sorted() -> None:
    screen, calls = Screen(), [call(3), call(5), call(8)]
    for step, chosen in ((1, 3), (1, 5), (-1, 3), (-1, 8)):
        screen.choose(calls, step)
        assert screen.chosen == chosen
    screen.choose([], 1)
    assert screen.chosen is None
    for _ in SORTS:
        screen.next_sort()
    assert screen.sort == next(iter(SORTS))


def test_a_trace_has_a_process_for_each_app_and_a_thread_for_each_context() -> None:
    found = trace([call(1, "ended"), call(2), call(3, "ended", name="notes", context=ContextId("d" * 16))])
    json.dumps(found)
    events = found["traceEvents"]
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"1000/mail", "inbox", "notes"}
    calls = [event for event in events if event["ph"] == "X" and event["name"].startswith("generate")]
    assert [event["dur"] for event in calls] == [2_000_000.0, 9000.0, 2_000_000.0]
    (going_on,) = [event for event in events if event["ph"] == "B"]
    assert (going_on["name"], going_on["ts"]) == ("decode", 1002.0 * 1e6 + 9000.0)


@pytest.fixture
def story(daemon: Daemon) -> Iterator[threading.Thread]:
    """A call that goes on until it is cancelled, on a thread that ends then."""
    with Client(daemon.socket, app="mail") as client:
        client.create(name=f"story-{time.monotonic_ns()}")
        context = client.contexts()[0].id

        def tell() -> None:
            with Client(daemon.socket, app="mail") as teller, pytest.raises(Cancelled):
                for _ in teller.generate(context, HELLO, max_tokens=100_000, on_full="shift"):
                    pass

        thread = threading.Thread(target=tell)
        thread.start()
        yield thread
        for each in client.requests():
            if each.state != "ended":
                client.cancel_call(each.call)
        thread.join(20)


def test_a_key_cancels_a_call_on_a_real_terminal(daemon: Daemon, story: threading.Thread, tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    top = subprocess.Popen(
        [*COMMAND, "top", "--socket", str(daemon.socket), "--every", "0.2"],
        env=clean_environ(tmp_path) | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    seen = ""

    def until(pattern: str) -> None:
        nonlocal seen
        late = time.monotonic() + 30
        while not re.search(pattern, seen):
            assert time.monotonic() < late, f"no {pattern!r} in {seen[-3000:]!r}"
            if select.select([main], [], [], 0.2)[0]:
                seen += os.read(main, 65536).decode("utf-8", "replace")

    try:
        until(r"story-\d+.*decode")
        os.write(main, b"j")
        os.write(main, b"-")
        until(r"has priority 6")
        os.write(main, b"c")
        until(r"is cancelled|has ended")
        story.join(20)
        assert not story.is_alive()
        os.write(main, b"q")
        assert top.wait(20) == 0
    finally:
        top.kill()
        top.wait()
        os.close(main)


def test_once_and_timeline_print_the_last_calls(daemon: Daemon, llmaas: Run, tmp_path: Path) -> None:
    with Client(daemon.socket, app="mail") as client:
        client.create(name="brief")
        assert client.generate("brief", HELLO, max_tokens=2).done.n_generated == 2
    done = llmaas("top", "--once", LLMAAS_SOCKET=str(daemon.socket), COLUMNS="140")
    assert done.returncode == 0 and "brief" in done.stdout and "prefill" in done.stdout
    file = tmp_path / "trace.json"
    assert llmaas("timeline", "-o", str(file), "--last", "1", LLMAAS_SOCKET=str(daemon.socket)).returncode == 0
    (named,) = [e for e in json.loads(file.read_text())["traceEvents"] if e["name"].startswith("generate")]
    assert named["args"]["outcome"] == "length" and named["args"]["n_generated"] == 2
    wrong = llmaas("timeline", "-o", str(tmp_path / "no" / "t.json"), LLMAAS_SOCKET=str(daemon.socket))
    assert wrong.returncode == 2 and "cannot be written" in wrong.stderr
