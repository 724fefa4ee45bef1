"""Every command that the documentation and --help show, run from a clean home as it stands, twice.

A daemon serves there, and the files that the examples name are there. What is not run is listed, with the reason.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.lib.adapter_files import write_gguf
from llmaas.cli.main import COMMANDS
from tests.cli.conftest import Daemon, Run, clean_environ
from tests.support.encoder_models import write_bert

ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "tests" / "data" / "version-0.1.0" / "scheduling.recording.gz"
NOT_RUN = {
    r"scripts/|git pull": "sets the checkout up, or changes it",
    r"llmaas model pull": "the network",
    r"llmaas (chat .*--model|ctx move)": "the daemon that runs serves one model",
    r"llmaas node (pair|rm)": "there is no other machine",
    r"llmaas cluster|pip install|ssh |ray stop": "there is no other machine; tests/nodes/cluster runs these commands",
    r"llmaas chat .*cluster.sock": "no cluster is there",
    r"curl|rm -rf": "the network; the home of the daemon that runs",
    r"systemctl|journalctl|loginctl": "this machine's systemd",
    r"llmaas demo": "has tests of its own",
    r"llmaas vm |apt install|android_bridge/|modprobe|/sys/": "a guest, or root; test_vm.py runs these commands",
    r"llmaas doctor --repair": "no daemon may run",
    r"llmaas trace import": "files of others; tests/traces imports some",
}
if find_spec("shtab") is None or find_spec("argparse_manpage") is None:
    NOT_RUN[r"llmaas (complete|man)\b"] = "the extra shell is not installed"
TO_AN_END = {
    r"^(LLMAAS_\w+=\S+ )?llmaas serve\b(?!.*--show-config)": " --show-config",
    r"stats --watch": " | head -20",
    r"^llmaas http\b": " & sleep 2; kill $!",
    r"llmaas top$": " --once",
    r"man \./llmaas\.1": " | cat",
}
"""Commands that go on until they are stopped, and what lets them end."""
MEANWHILE = {
    r"ctx (fork|import)": "context",
    r"ctx (hint|rm|show|truncate|migrate|export)|adapter rm|chat .*--adapter": "",
    r"app (add|rotate|rm)": "app",
}
"""What may fail when it is done again, or after another example, and what it must then say."""
SYSTEMCTL = "#!/bin/sh\ncase $* in *is-active*) echo active;; *is-enabled*) echo enabled;; esac\n"


def commands_of(page: Path) -> list[str]:
    """The lines of the blocks that have a command of llmaas, without comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    shown = [
        block for language, block in blocks if not language and re.search(r"^(.*\| )?llmaas ", block, re.MULTILINE)
    ]
    return [re.split(r"\s+#", line)[0] for block in shown for line in block.splitlines() if not line.startswith(" ")]


def commands_of_help(text: str) -> list[str]:
    examples = text.partition("\nexamples:\n")[2].partition("\n\n")[0]
    return [re.split(r"\s{2,}", line.strip())[0] for line in examples.splitlines()]


FIRST_PAGES = ("README.md", "docs/first-hour.md", "docs/tutorial.md", "docs/operations.md")
PAGES = [
    str(page.relative_to(ROOT))
    for folder in (".", "bench", "client", "docs", "docs/decisions", "traces")
    for page in sorted((ROOT / folder).glob("*.md"))
    if commands_of(page)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[Path]:
    """A home with a daemon, the command ``llmaas`` on the PATH, and the files that the examples name."""
    home = tmp_path_factory.mktemp("h")
    (home / "bin").mkdir()
    for name, text in (
        ("llmaas", f'#!/bin/sh\nexec "{sys.executable}" -W error -m llmaas "$@"\n'),
        ("systemctl", SYSTEMCTL),
    ):
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755)
    for folder in ("models", ".zfunc", ".local/share/bash-completion/completions", ".local/share/man/man1"):
        (home / folder).mkdir(parents=True)
    for name in ("m.gguf", "models/MODEL.gguf"):
        (home / name).symlink_to(model_path)
    write_bert(home / "nomic-embed-text.gguf")
    for name in ("terse.gguf", "mail.gguf"):
        write_gguf(home / name, 1)
    write_bert(home / "nomic-embed-text.gguf")
    (home / "people.json").write_text('{"type": "array", "items": {"enum": ["Ada", "Bob"]}, "maxItems": 2}')
    (home / "question.txt").write_text("Who are you?\n")
    (home / "llmaas.toml").write_text("cells = 4096\n")
    (home / "traces").symlink_to(ROOT / "traces")
    (home / "calls.recording").write_bytes(gzip.decompress(RECORDING.read_bytes()))
    costs = {"compute": [3e-3, 1e-4], "decode": [4e-3, 4e-3], "read": [1e-3, 2e-3], "place": [1e-3, 1e-3]}
    learned = {"model": "m.gguf", "weights_bytes": 98_000_000, **costs}
    (home / ".local/share/llmaas.costs.json").write_text(json.dumps(learned))
    daemon = Daemon(home)
    daemon.start()
    for _ in range(2):  # examples show and cut a conversation of four messages
        assert check('llmaas chat notes --once "Hello."', home) is None
    yield home
    daemon.stop()


def check(command: str, home: Path) -> str | None:
    """What is wrong with ``command``; None if it ends well, or is not run."""
    if any(re.search(pattern, command) for pattern in NOT_RUN):
        return None
    line = command.replace("/etc/", "")
    for pattern, end in TO_AN_END.items():
        line += end if re.search(pattern, command) else ""
    environ = clean_environ(home) | {
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "LLMAAS_SOCKET": str(home / "run" / "d.sock"),
        "LLMAAS_MAX_TOKENS": "6",
    }
    done = subprocess.run(
        ["bash", "-c", line], cwd=home, env=environ, input="Hello.\n", capture_output=True, text=True, timeout=60
    )
    expected = next((says for pattern, says in MEANWHILE.items() if re.search(pattern, command)), None)
    fine = done.returncode == 0 or (expected is not None and done.returncode in (1, 2) and expected in done.stderr)
    return None if fine and "Traceback" not in done.stderr else f"{line}: {done.returncode}: {done.stderr[-300:]}"


def test_pages_with_commands_are_found() -> None:
    assert {"README.md", "docs/first-hour.md", "docs/tutorial.md", "docs/operations.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_do_what_they_say(page: str, home: Path) -> None:
    commands = commands_of(ROOT / page)
    assert len(commands) >= (3 if page in FIRST_PAGES else 1)
    assert [wrong for command in commands * 2 if (wrong := check(command, home))] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_examples_of_help_do_what_they_say(name: str, home: Path, llmaas: Run) -> None:
    commands = commands_of_help(llmaas(name, "--help").stdout)
    assert commands or name == "demo"
    assert [wrong for command in commands * 2 if (wrong := check(command, home))] == []
