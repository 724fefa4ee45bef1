"""The daemon's log: lines for people, or JSON for programs; each message of a call says which."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import pytest

from llmaas.cli.log_format import CallOfMessage, formatter
from llmaas.log_context import current_call
from tests.cli.conftest import Daemon


def logged(log_format: str, message: str, *args: object, **more: object) -> str:
    record = logging.LogRecord("llmaas.test", logging.WARNING, "test.py", 1, message, args, None)
    vars(record).update(more)
    assert CallOfMessage().filter(record)
    return formatter(log_format).format(record)


def test_a_line_of_json_holds_all_there_is() -> None:
    line = json.loads(logged("json", "two\nlines: %s", "\u2028 \udcff"[0]))
    assert line["message"] == "two\nlines: \u2028" and line["level"] == "warning" and line["logger"] == "llmaas.test"
    assert line["time"].endswith("+00:00") and "call" not in line and "error" not in line
    assert "\n" not in logged("json", "two\nlines")


def test_an_error_has_its_traceback() -> None:
    try:
        raise RuntimeError("oh")
    except RuntimeError as error:
        line = json.loads(logged("json", "failed", exc_info=(type(error), error, error.__traceback__)))
    assert "RuntimeError: oh" in line["error"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_messages_of_a_calls_task_say_which_call(log_format: str) -> None:
    async def call(number: int) -> str:
        current_call.set(number)
        await asyncio.sleep(0)
        return logged(log_format, "hello")

    async def both() -> list[str]:
        return list(await asyncio.gather(call(3), call(4)))

    for number, line in zip((3, 4), asyncio.run(both()), strict=True):
        assert (json.loads(line)["call"] == number) if log_format == "json" else (f"call {number}: hello" in line)
    assert "call" not in logged(log_format, "hello").replace("llmaas", "")


def test_the_daemon_logs_json_where_that_is_asked_for(tmp_path_factory: pytest.TempPathFactory) -> None:
    daemon = Daemon(tmp_path_factory.mktemp("j"), more=("--log-format", "json"))
    daemon.start()
    late = time.monotonic() + 30
    while "ready:" not in daemon.log and time.monotonic() < late:  # the socket is there a moment before
        time.sleep(0.01)
    assert daemon.stop() == 0
    ours, _, _ = daemon.log.partition("Exception ignored")  # Python's own, at its end, as these tests warn of all
    lines = [json.loads(line) for line in ours.splitlines()]
    assert any(line["message"].startswith("ready:") for line in lines) and lines[-1]["message"] == "stopped"
