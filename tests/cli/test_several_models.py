"""``llmaas serve --models all`` with real models: one socket, one HTTP port, a process for each that is in use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmaas.api.client import Client
from llmaas.errors import LlmaasError
from llmaas.records import Message
from tests.cli.conftest import Daemon, Run
from tests.cli.test_http_process import free_port


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, model_path: Path, port: int) -> Iterator[Daemon]:
    root = tmp_path_factory.mktemp("s")
    flags = ("--models", "all", "--http", f"127.0.0.1:{port}", "--models-bytes", "16G", "--repack", "off")
    daemon = Daemon(root, more=flags)
    environ = os.environ | {"LLMAAS_DATA_DIR": str(daemon.data_dir)}
    for name, cells in (("one", "512"), ("two", "768")):
        add = [sys.executable, "-m", "llmaas", "model", "add", name, str(model_path), "--cells", cells]
        subprocess.run(add, env=environ, check=True, capture_output=True)
    daemon.start()
    yield daemon
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def children(daemon: Daemon) -> list[psutil.Process]:
    assert daemon.process is not None
    return [
        each
        for each in psutil.Process(daemon.process.pid).children()
        if each.name().startswith("llmaas ") and each.status() != psutil.STATUS_ZOMBIE
    ]


def starter_of(daemon: Daemon) -> int:
    """The process that makes those of models."""
    assert daemon.process is not None
    late = time.monotonic() + 20
    while time.monotonic() < late:
        for each in psutil.Process(daemon.process.pid).children():
            if "--starter" in each.cmdline() and not each.name().startswith("llmaas "):
                return each.pid
        time.sleep(0.05)
    raise AssertionError("no process makes others")


def ask(port: int, model: str) -> dict[str, object]:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 3}
    call = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(call, timeout=60) as reply:
        found = json.load(reply)
    assert isinstance(found, dict)
    return found


def test_two_models_serve_side_by_side_and_one_is_killed(several: Daemon, port: int, llmaas: Run) -> None:
    assert children(several) == [], "nothing is loaded before anybody asks"
    starter = starter_of(several)
    with (
        Client(several.socket, app="t", model="one", retry_s=60) as one,
        Client(several.socket, app="t", model="two") as two,
    ):
        assert (one.server["served_as"], two.server["served_as"]) == ("one", "two")
        assert {each.name() for each in children(several)} == {"llmaas one", "llmaas two"}
        assert all("--starter" in each.cmdline() for each in children(several)), "they are copies of it"
        first, second = one.context("c"), two.context("c")
        kept = first.ask("Say hello.", max_tokens=4)
        victim = next(each for each in children(several) if each.name() == "llmaas one")
        stream = two.generate(second.id, [Message("user", "Count.")], max_tokens=30)
        next(stream)
        victim.send_signal(signal.SIGKILL)
        assert stream.done.n_generated > 1
        again = first.ask("And again.", max_tokens=4)
        shown = [message.content for message in first.show().messages if message.role != "system"]
        assert shown == ["Say hello.", kept, "And again.", again]
        assert all("--starter" in each.cmdline() for each in children(several)), "what was killed, too"
        assert starter_of(several) == starter
    at = {"LLMAAS_SOCKET": str(several.socket)}
    table = llmaas("model", "ls", LLMAAS_DATA_DIR=str(several.data_dir), **at).stdout
    assert table.count(" ready ") == 2, table
    told = llmaas("ctx", "ls", "--app", "t", "--model", "two", **at)
    assert told.returncode == 0 and "c" in told.stdout
    assert llmaas("ctx", "ls", "--model", "three", **at).returncode == 1
    assert ask(port, "two")["model"] == "two"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as reply:
        assert [each["id"] for each in json.load(reply)["data"]] == ["one", "two"]


def test_stores_are_apart_and_share_the_key(several: Daemon) -> None:
    with Client(several.socket, app="k", model="two") as two:
        two.context("mine").ask("Hello.", max_tokens=2)
    with Client(several.socket, app="k", model="one") as one, pytest.raises(LlmaasError):
        one.show("mine")
    assert (several.data_dir / "index.sqlite").exists()
    assert (several.data_dir / "model-stores" / "two" / "index.sqlite").exists()
    assert not (several.data_dir / "model-stores" / "two.key").exists()
    assert several.data_dir.with_name("data.key").exists()


def test_a_context_is_taken_to_the_other_model(several: Daemon, llmaas: Run) -> None:
    with Client(several.socket, app="m", model="one") as one:
        answer = one.context("notes").ask("Say hello.", max_tokens=4)
        n_tokens = one.show("notes").info.n_tokens
    at = {"LLMAAS_SOCKET": str(several.socket)}
    moved = llmaas("ctx", "move", "notes", "--app", "m", "--model", "one", "--to", "two", **at)
    assert (moved.returncode, moved.stdout) == (0, f"notes is at two: {n_tokens} tokens\n"), moved.stderr
    with Client(several.socket, app="m", model="one") as one, Client(several.socket, app="m", model="two") as two:
        assert one.contexts() == []
        shown = [message.content for message in two.show("notes").messages if message.role != "system"]
        assert shown == ["Say hello.", answer]
        assert two.show("notes").info.tiers == (0, 0, 0, n_tokens)
        assert two.generate("notes", [Message("user", "And?")], max_tokens=2).done.n_generated
        two.create(name="other")
    for words, said in ((("notes", "other"), "other is at one"), (("notes",), "has a context named 'notes'")):
        with Client(several.socket, app="m", model="one", retry_s=30) as one:
            if not one.contexts():
                one.create(name="notes")
        failed = llmaas("ctx", "move", *words, "--keep", "--app", "m", "--model", "two", "--to", "one", **at)
        assert failed.returncode == 1 and said in failed.stdout + failed.stderr, failed.stderr


def test_an_app_with_a_token_needs_it_for_every_model(several: Daemon, llmaas: Run) -> None:
    at = {"LLMAAS_SOCKET": str(several.socket)}
    with Client(several.socket, app="secret", model="two") as before:
        added = llmaas("app", "add", "secret", "--model", "one", **at)
        assert added.returncode == 0, added.stderr
        with pytest.raises(LlmaasError):
            before.ping()
    for model in ("one", "two"):
        with pytest.raises(LlmaasError, match="has a token"):
            Client(several.socket, app="secret", model=model)
        Client(several.socket, token=added.stdout.strip(), model=model).close()
