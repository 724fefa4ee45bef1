"""The command line against a real daemon with the real model."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bench.lib.adapter_files import ALL_OF_SMOLLM2, write_gguf
from tests.cli.conftest import COMMAND, Daemon, Run, clean_environ


@pytest.fixture
def at(daemon: Daemon) -> dict[str, str]:
    return {"LLMAAS_SOCKET": str(daemon.socket)}


def ls(llmaas: Run, at: dict[str, str], *more: str) -> dict[str, dict[str, object]]:
    return {c["name"]: c for c in json.loads(llmaas("ctx", "ls", "--json", *more, **at).stdout)}


def test_a_question_is_answered_and_the_context_stays(llmaas: Run, at: dict[str, str]) -> None:
    first = llmaas("chat", "notes", "--system", "Be brief.", "--once", "Say hello.", "--max-tokens", "8", **at)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.strip()
    second = llmaas("chat", "notes", "--max-tokens", "8", "--status", stdin="And again?\n", **at)
    assert second.returncode == 0
    assert "switch " in second.stderr
    shown = json.loads(llmaas("ctx", "show", "notes", "--json", **at).stdout)
    said = [(m["role"], m["content"]) for m in shown["conversation"]]
    assert [role for role, _ in said] == ["system", "user", "assistant", "user", "assistant"]
    assert said[0][1] == "Be brief."
    assert said[2][1] == first.stdout.removesuffix("\n")
    assert said[3][1] == "And again?"
    assert shown["tokens"] == sum(shown["tiers"].values())
    assert "Say hello." in llmaas("ctx", "show", "notes", **at).stdout


def test_answers_are_drawn_unless_the_user_wants_the_likeliest(llmaas: Run, at: dict[str, str]) -> None:
    """Beginnings are compared: coded KV may change a late word of a greedy answer."""
    ask = ("--once", "Tell me a story.", "--max-tokens", "24", "--seed")
    for n, (flags, answers) in enumerate([((), 3), (("--temperature", "0"), 1)]):
        said = [llmaas("chat", f"drawn-{n}-{i}", *ask, str(i), *flags, **at).stdout[:50] for i in range(3)]
        assert all(said) and len(set(said)) == answers


def test_a_system_message_for_an_old_context_is_told_to_be_unused(llmaas: Run, at: dict[str, str]) -> None:
    for expected in ("", "--system is not used"):
        done = llmaas("chat", "sys", "--system", "S", "--once", "x", "--max-tokens", "2", **at)
        assert done.returncode == 0
        assert (expected in done.stderr) and bool(done.stderr) == bool(expected)


def test_a_priority_that_the_daemon_does_not_grant_is_told(llmaas: Run, at: dict[str, str]) -> None:
    for wanted, told in (("interactive", "--priority 1 counts as 5"), ("background", "")):
        done = llmaas("chat", "haste", "--priority", wanted, "--once", "x", "--max-tokens", "2", **at)
        assert done.returncode == 0
        assert (told in done.stderr) and bool(done.stderr) == bool(told)


def test_fork_truncate_and_rm_do_as_they_say(llmaas: Run, at: dict[str, str]) -> None:
    llmaas("chat", "tree", "--once", "One two three.", "--max-tokens", "6", **at)
    assert llmaas("ctx", "fork", "tree", "branch", **at).returncode == 0
    assert llmaas("ctx", "hint", "branch", **at).returncode == 0
    assert llmaas("ctx", "truncate", "branch", "--messages", "1", **at).returncode == 0
    found = ls(llmaas, at)
    assert found["branch"]["messages"] == 1
    assert found["tree"]["messages"] == 2
    refused = llmaas("ctx", "rm", "tree", "typo", **at)
    assert refused.returncode == 1
    assert "there is no context 'typo'" in refused.stderr
    assert "tree" in ls(llmaas, at), "a typo must delete nothing"
    assert llmaas("ctx", "rm", "tree", str(found["branch"]["id"])[:8], **at).returncode == 0
    assert not {"tree", "branch"} & set(ls(llmaas, at))


def test_an_app_sees_its_own_contexts_and_the_daemons_user_all(llmaas: Run, at: dict[str, str]) -> None:
    llmaas("chat", "secret", "--app", "other", "--once", "x", "--max-tokens", "2", **at)
    assert "secret" not in ls(llmaas, at)
    assert str(ls(llmaas, at, "--everyone")["secret"]["app"]).endswith("/other")
    assert llmaas("ctx", "show", "secret", **at).returncode == 1
    assert "/other" in llmaas("ctx", "ls", "--everyone", **at).stdout


def test_stats_are_for_people_and_for_scripts(llmaas: Run, at: dict[str, str]) -> None:
    figures = json.loads(llmaas("stats", "--json", **at).stdout)
    assert figures["cells"]["total"] >= 2048
    assert "cells" in llmaas("stats", **at).stdout


def test_an_adapter_is_registered_used_kept_by_the_context_and_forgotten(
    llmaas: Run, at: dict[str, str], tmp_path: Path
) -> None:
    def ask(*more: str) -> str:
        same = ("--max-tokens", "8", "--temperature", "0")
        return llmaas("chat", "lora", "--once", "Count to five.", *same, *more, **at).stdout

    file = write_gguf(tmp_path / "a.gguf", 1, weights=ALL_OF_SMOLLM2)
    assert llmaas("adapter", "ls", **at).stdout.startswith("No adapters")
    added = llmaas("adapter", "add", "strange", str(file), **at)
    assert (added.returncode, added.stderr) == (0, "")
    (shown,) = json.loads(llmaas("adapter", "ls", "--json", **at).stdout)
    assert (shown["name"], shown["path"], shown["loaded"]) == ("strange", str(file), True)
    ask()
    fork = llmaas("ctx", "fork", "lora", "lora-2", **at)
    assert fork.returncode == 0
    strange = ask("--adapter", "strange")
    assert ls(llmaas, at)["lora"]["adapter"] == "strange"
    assert "with strange" in llmaas("ctx", "ls", **at).stdout
    same = ("--max-tokens", "8", "--temperature", "0")
    plain = llmaas("chat", "lora-2", "--once", "Count to five.", *same, **at).stdout
    assert strange != plain, "the same tokens"
    refused = llmaas("chat", "lora", "--once", "x", "--adapter", "nobody's", **at)
    assert (refused.returncode, "nobody's" in refused.stderr) == (1, True)
    assert llmaas("adapter", "add", "bad", __file__, **at).returncode == 1
    assert llmaas("adapter", "rm", "strange", **at).returncode == 0
    gone = llmaas("chat", "lora", "--once", "x", **at)
    assert "'strange', which is not registered" in gone.stderr
    assert ask("--adapter", "")


def budgets_at_rest(llmaas: Run, at: dict[str, str]) -> dict[str, Any]:
    """The budgets when POOL is as full as 2 readings before: the daemon may still recode chunks of an earlier test."""
    used: list[int] = []
    while True:
        found: dict[str, Any] = json.loads(llmaas("budget", "--json", **at).stdout)
        used.append(found["pool_bytes"]["used"])
        if len(used) > 2 and len({*used[-3:]}) == 1:
            return found


def test_budgets_are_seen_and_changed_while_it_runs(llmaas: Run, at: dict[str, str]) -> None:
    before = budgets_at_rest(llmaas, at)
    assert before["pool_bytes"]["budget"] == 256 << 20 and before["disk_bytes"]["quota"] == 20 << 30
    assert before["memory"]["watched"]
    changed = llmaas("budget", "--pool", "64M", "--disk", "none", **at)
    assert changed.returncode == 0
    assert "64.0 MiB" in changed.stdout and "quota   none" in changed.stdout
    wrong = llmaas("budget", "--pool", "0.5M", **at)
    assert (wrong.returncode, "--pool is '0.5M'; it must be a size of at least 1M" in wrong.stderr) == (2, True)
    llmaas("budget", "--pool", "256M", "--disk", "20G", **at)
    assert json.loads(llmaas("budget", "--json", **at).stdout)["pool_bytes"] == before["pool_bytes"]


def test_a_change_is_saved_for_the_next_start(llmaas: Run, at: dict[str, str], tmp_path: Path) -> None:
    done = llmaas("budget", "--pool", "256M", "--save", **at)
    file = tmp_path / ".config" / "llmaas" / "config.toml"
    assert (done.returncode, done.stderr) == (0, f"llmaas: saved in {file}: pool_bytes = 256M\n")
    assert llmaas("limit", "none", "--save", **at).returncode == 0
    assert file.read_text("utf-8") == 'pool_bytes = "256M"\nrate = "none"\n'
    shown = llmaas("serve", "--show-config").stdout.splitlines()
    assert f"pool_bytes = 256M    # {file}" in shown


def test_stats_watch_until_interrupted(at: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "stats", "--watch", "0.1"], env=clean_environ(tmp_path) | at, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        seen = 0
        while seen < 3:
            seen += "model" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.wait(20) == 130


def test_the_doctor_finds_a_running_daemon_well(llmaas: Run, at: dict[str, str], daemon: Daemon) -> None:
    done = llmaas("doctor", "--json", "--data-dir", str(daemon.data_dir), "--cells", "2048", **at)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["ok"]
    texts = {f["about"]: f["text"] for f in report["findings"]}
    assert texts["socket"].startswith("a daemon answers")
    assert texts["store"].startswith("not checked")
    assert texts["budgets"].startswith("pool 256.0 MiB (configured); disk ")


def test_an_answer_keeps_to_a_schema_and_bad_ones_are_told(llmaas: Run, at: dict[str, str], tmp_path: Path) -> None:
    schema, broken = tmp_path / "schema.json", tmp_path / "broken.gbnf"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    broken.write_text('root ::= "a" |\n  nothing')
    done = llmaas("chat", "shape", "--once", "A number, please.", "--json-schema", str(schema), "--seed", "1", **at)
    assert type(json.loads(done.stdout)["n"]) is int
    bad = llmaas("chat", "shape", "--once", "x", "--grammar", str(broken), **at)
    assert (bad.returncode, "line 2: there is no rule 'nothing'" in bad.stderr) == (2, True)
    assert llmaas("stats", **at).returncode == 0


def test_bad_requests_are_told_without_harm(llmaas: Run, at: dict[str, str]) -> None:
    missing = llmaas("chat", "--once", "x", "--grammar", "/nowhere.gbnf", **at)
    assert missing.returncode == 2 and "/nowhere.gbnf" in missing.stderr
    hot = llmaas("chat", "--once", "x", "--temperature", "99", **at)
    assert (hot.returncode, "temperature must be in [0, 10]" in hot.stderr) == (2, True)
    app = llmaas("ctx", "ls", "--app", "no spaces", **at)
    assert (app.returncode, "app" in app.stderr) == (2, True)
    assert llmaas("stats", **at).returncode == 0


def test_a_second_daemon_is_refused_on_the_socket_and_on_the_store(llmaas: Run, daemon: Daemon, tmp_path: Path) -> None:
    same_store = llmaas("serve", "--data-dir", str(daemon.data_dir), "--socket", str(tmp_path / "x.sock"))
    assert (same_store.returncode, "in use" in same_store.stderr) == (1, True)
    same_socket = llmaas("serve", "--data-dir", str(tmp_path / "data"), "--socket", str(daemon.socket))
    assert same_socket.returncode == 1
    assert "hint: Another daemon serves this socket" in same_socket.stderr
    assert llmaas("stats", LLMAAS_SOCKET=str(daemon.socket)).returncode == 0


class Terminal:
    """A user at a terminal: what they type and what they see."""

    def __init__(self, args: list[str], environ: dict[str, str]) -> None:
        self._fd, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def until(self, text: str, seconds: float = 30) -> str:
        """What was shown up to and with ``text``; the rest waits for the next call."""
        late = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, late - time.monotonic()))
            assert ready, f"{text!r} did not come; seen: {self.seen!r}"
            try:
                self.seen += os.read(self._fd, 4096).decode("utf-8", "replace")
            except OSError:
                raise AssertionError(f"it ended before {text!r}; seen: {self.seen!r}") from None
        shown, _, self.seen = self.seen.partition(text)
        return shown + text

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


def test_a_conversation_at_a_terminal(llmaas: Run, at: dict[str, str], tmp_path: Path) -> None:
    user = Terminal(["chat", "--max-tokens", "200", "--app", "pty", "--seed", "1"], clean_environ(tmp_path) | at)
    try:
        user.until("name of the new context: ")
        user.type("diary\n")
        user.until("> ")
        user.type("Write a very long story about the sea.\n")
        user.until("story about the sea.")
        user.until(" ")  # the answer has begun
        os.kill(user.process.pid, signal.SIGINT)
        user.until("cancelled")
        user.until("> ")
        user.type("Say yes.\n")
        user.until("tok/s]", 60)
        user.until("> ")
        user.type("\x04")
        assert user.process.wait(20) == 0
    finally:
        user.close()
    history = tmp_path / ".local" / "state" / "llmaas" / "chat_history"
    assert "Say yes." in history.read_text("utf-8")
    assert history.stat().st_mode & 0o077 == 0
    assert ls(llmaas, at, "--app", "pty")["diary"]["messages"] == 4


def test_a_context_is_chosen_from_the_list_by_its_number(llmaas: Run, at: dict[str, str], tmp_path: Path) -> None:
    llmaas("chat", "older", "--app", "choose", "--once", "x", "--max-tokens", "2", **at)
    llmaas("chat", "newer", "--app", "choose", "--once", "x", "--max-tokens", "2", **at)
    user = Terminal(["chat", "--app", "choose"], clean_environ(tmp_path) | at)
    try:
        listed = user.until("context (1-2, or a new name): ")
        assert listed.index("newer") < listed.index("older")
        user.type("2\n")
        assert "older: 2 messages so far" in user.until("> ")
        user.type("\x04")
        assert user.process.wait(20) == 0
    finally:
        user.close()


def test_a_restarted_daemon_goes_on_where_it_was(llmaas: Run, at: dict[str, str], daemon: Daemon) -> None:
    """Last, since it stops the daemon that the tests above share."""
    text = "Remember the word apple. " + "It is a fruit, and grows on trees. " * 12  # more than a chunk
    llmaas("chat", "keep", "--once", text, "--max-tokens", "8", **at)
    before = ls(llmaas, at)["keep"]
    assert daemon.stop(signal.SIGTERM) == 0
    assert not daemon.socket.exists()
    checked = llmaas("doctor", "--deep", "--data-dir", str(daemon.data_dir), "--socket", str(daemon.socket))
    assert checked.returncode == 0, checked.stdout
    assert "no problem found" in checked.stdout
    daemon.more = ("--warm-start=false",)
    daemon.start()
    after = ls(llmaas, at)["keep"]
    assert (after["id"], after["tokens"], after["messages"]) == (before["id"], before["tokens"], before["messages"])
    done = llmaas("chat", "keep", "--once", "Which word?", "--max-tokens", "8", "--status", **at)
    assert (done.returncode, "disk" in done.stderr) == (0, True)
    assert daemon.stop(signal.SIGINT) == 0
    assert "Traceback" not in daemon.log
    daemon.more = ()
    daemon.start()
    until = time.monotonic() + 60
    while "back in cells" not in daemon.log and time.monotonic() < until:
        time.sleep(0.05)
    done = llmaas("chat", "keep", "--once", "And now?", "--max-tokens", "8", "--status", **at)
    assert (done.returncode, "cells" in done.stderr, "disk" in done.stderr) == (0, True, False)
