"""A conversation outlives the daemon: what is stored, and what is on the screen, is one turn, whole."""

from __future__ import annotations

import argparse
import itertools
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.calls import Done, FinishReason, SwitchReport
from llmaas.cli import chat
from llmaas.cli.answer import status_line
from llmaas.cli.chat_input import Lines
from llmaas.cli.dialogue import Dialogue
from llmaas.records import ContextId, Message
from tests.cli.conftest import COMMAND, Daemon, clean_environ

STORY = "Tell me a long story about the sea."
numbers = itertools.count()


@pytest.fixture
def talk(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Dialogue]:
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    chat.add_arguments(parser)
    args = parser.parse_args(["--temperature", "0", "--no-status"])

    def connect() -> Client:
        return Client(daemon.socket, app="talk")

    client = connect()
    made = Dialogue(client, connect, client.create(name=f"talk-{next(numbers)}"), args, 60)
    yield made
    made.client.close()


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> Lines:
    """A user who types these lines, and then Ctrl-D."""
    left = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    return Lines()


def stored(talk: Dialogue) -> list[Message]:
    return list(talk.client.show(talk.context.id).messages)


def answer(talk: Dialogue) -> str:
    """The one answer of a conversation of one question."""
    asked, said = stored(talk)
    assert (asked.role, asked.content, said.role) == ("user", STORY, "assistant")
    return said.content


def interrupting(monkeypatch: pytest.MonkeyPatch, after: int, harm: Callable[[], None]) -> Callable[[], None]:
    """Do ``harm`` on a thread as soon as ``after`` pieces of text were shown; returns what waits for its end."""
    seen = itertools.count(1)
    thread = threading.Thread(target=harm)

    def show(text: str, keep: str = "") -> str:
        if next(seen) == after:
            thread.start()
        return text

    monkeypatch.setattr("llmaas.cli.answer.printable", show)
    return thread.join


def restart(daemon: Daemon, signum: int) -> Callable[[], None]:
    def harm() -> None:
        daemon.stop(signum)
        daemon.start()

    return harm


def flat(text: str) -> str:
    """``text`` without line breaks: where an answer breaks off, chat begins a new line."""
    return "".join(text.split("\n"))


def test_an_answer_that_a_stop_cuts_in_two_goes_on(
    talk: Dialogue, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    join = interrupting(monkeypatch, 5, restart(daemon, signal.SIGTERM))
    talk.say(STORY)
    join()
    out, err = capsys.readouterr()
    assert flat(out) == flat(answer(talk)), "on the screen once, and whole"
    assert "the daemon was restarted; the answer goes on" in err
    assert talk.client.show(talk.context.id).info.n_tokens > 60


def test_an_answer_that_is_killed_is_asked_for_again(
    talk: Dialogue, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    join = interrupting(monkeypatch, 5, restart(daemon, signal.SIGKILL))
    talk.say(STORY)
    join()
    out, err = capsys.readouterr()
    assert flat(out).endswith(flat(answer(talk)))
    assert "it is computed again" in err


def test_a_lost_last_reply_doubles_nothing(
    talk: Dialogue, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The turn is stored, and the connection breaks before the client hears of it."""
    talk.say("Say one word.")
    before = stored(talk)
    capsys.readouterr()

    def cut() -> None:
        """Let the daemon finish, and break the connection while the client does not read."""
        with Client(daemon.socket, app="talk") as other:
            other.migrate(talk.context.id)  # waits for its turn
        talk.client.close()

    monkeypatch.setattr("llmaas.cli.answer.printable", _once(cut))
    talk.say(STORY)
    out = capsys.readouterr().out
    said = stored(talk)
    assert [m.content for m in said[: len(before)]] == [m.content for m in before]
    assert [(m.role, m.content == STORY) for m in said[len(before) :]] == [("user", True), ("assistant", False)]
    assert flat(out) == flat(said[-1].content)


def _once(harm: Callable[[], None]) -> Callable[..., str]:
    left = [harm]

    def show(text: str, keep: str = "") -> str:
        if left:
            left.pop()()
        return text

    return show


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_single_question_outlives_the_daemon_too(daemon: Daemon, tmp_path: Path, signum: int) -> None:
    """A script finds the answer once, and whole.

    After SIGKILL it is computed again. Sums are rounded differently with another number of threads or other slices of
    the prompt, so once in a long while another token is the likeliest: then the script is told so.
    """
    name = f"once-{next(numbers)}"
    command = [*COMMAND, "chat", name, "--once", STORY, "--temperature", "0", "--socket", str(daemon.socket)]
    command += ["--max-tokens", "60", "--app", "talk"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=clean_environ(tmp_path), stdout=pipe, stderr=pipe) as script:
        assert script.stdout is not None and script.stderr is not None
        begin = script.stdout.read(8)
        restart(daemon, signum)()
        said, told = (begin + script.stdout.read()).decode(), script.stderr.read().decode()
        code = script.wait(60)
    with Client(daemon.socket, app="talk") as client:
        asked, answered = client.show(name).messages
    assert (asked.role, answered.role) == ("user", "assistant")
    if code and signum == signal.SIGKILL:
        assert "the answer that was made anew is not the one that had begun" in told
        assert not answered.content.startswith(said)
    else:
        assert (code, said) == (0, answered.content + "\n"), told


def test_a_daemon_that_is_restarted_between_messages_is_not_noticed(
    talk: Dialogue, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk.say("Say one word.")
    restart(daemon, signal.SIGTERM)()
    talk.run(typed(monkeypatch, "Say another.", "/undo", "Say a third.", "/bye", "never read"))
    assert [m.content for m in stored(talk) if m.role == "user"] == ["Say one word.", "Say a third."]


def test_commands_are_told_and_unknown_ones_are_no_messages(
    talk: Dialogue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.run(typed(monkeypatch, "/help", "/halp", "/undo", "", "  "))
    out, err = capsys.readouterr()
    assert "/undo   take your last message" in out
    assert "/halp is no command" in err and "there is no message to take back" in err
    assert stored(talk) == []


def test_a_message_of_several_lines_is_one(talk: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    talk.run(typed(monkeypatch, '"""', "one", "", 'two"""', '"""three"""', " /four", "/usr/bin is what?"))
    assert [m.content for m in stored(talk) if m.role == "user"] == [
        "one\n\ntwo",
        "three",
        " /four",
        "/usr/bin is what?",
    ]


def test_the_line_of_figures_adds_up_or_says_why_not() -> None:
    def line(switch: SwitchReport, n_paused: int = 0) -> str:
        done = Done(ContextId("c"), FinishReason.STOP, 65, 10, 4, switch, 0.1, 20.0, 30.0, n_paused)
        return status_line(done)

    assert "(nothing to bring back)" in line(SwitchReport())
    assert "(cells 51)" in line(SwitchReport(cells=51))
    paused = line(SwitchReport(cells=106, disk=51), n_paused=2)
    assert "(cells 106, disk 51 in 3 switches, since it was paused 2 times)" in paused
    assert "since it was paused once)" in line(SwitchReport(cells=106), n_paused=1)
