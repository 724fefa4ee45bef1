"""``llmaas ctx migrate`` on a daemon whose model has been changed."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Daemon, Run
from tests.support.altered_model import another_tokenizer


def test_conversations_are_taken_over_after_a_change_of_model(llmaas: Run, gguf: Path, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    at = {"LLMAAS_SOCKET": str(daemon.socket)}
    daemon.start()
    try:
        for name in ("notes", "mail"):
            said = llmaas("chat", name, "--max-tokens", "8", stdin="My name is Ann.\n", **at)
            assert said.returncode == 0, said.stderr
        nothing = llmaas("ctx", "migrate", "--all", **at)
        assert (nothing.returncode, nothing.stdout.count("\n")) == (0, 1)
        daemon.stop()
        with another_tokenizer(gguf, tmp_path / "other.gguf") as model:
            daemon.more = ("--model", str(model))
            daemon.start()
            refused = llmaas("chat", "notes", "--max-tokens", "8", stdin="And?\n", **at)
            assert refused.returncode != 0 and "ctx migrate" in refused.stderr
            for args in ([], ["notes", "--all"]):
                assert llmaas("ctx", "migrate", *args, **at).returncode == 2
            one = llmaas("ctx", "migrate", "notes", **at)
            assert (one.returncode, one.stdout.split(":")[0]) == (0, "notes was taken over"), one.stderr
            rest = llmaas("ctx", "migrate", "--all", "--everyone", **at)
            assert (rest.returncode, rest.stdout.split(":")[0]) == (0, "mail was taken over"), rest.stderr
            again = llmaas("ctx", "migrate", "notes", **at)
            assert "already" in again.stdout
            went_on = llmaas("chat", "notes", "--max-tokens", "8", stdin="And?\n", **at)
            assert went_on.returncode == 0, went_on.stderr
            assert "My name is Ann." in llmaas("ctx", "show", "notes", **at).stdout
            daemon.stop()
    finally:
        daemon.stop()
