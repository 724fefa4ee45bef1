"""The front door: help, exit codes, messages instead of tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import llmaas as package
from llmaas.cli.main import COMMANDS, build_parser, main
from llmaas.config.settings import SETTINGS, flag, variable
from tests.cli.conftest import COMMAND, Run, clean_environ


def test_help_names_every_command_and_the_exit_codes(llmaas: Run) -> None:
    done = llmaas("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"    {name} " in done.stdout
    assert "exit codes:" in done.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_has_help_with_examples(name: str, llmaas: Run) -> None:
    done = llmaas(name, "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert f"llmaas {name}" in done.stdout


def test_the_help_of_serve_names_every_setting_its_variable_and_default(llmaas: Run) -> None:
    text = " ".join(llmaas("serve", "--help").stdout.split()).replace("- ", "-")
    for name, row in SETTINGS.items():
        if name not in ("max_tokens", "daemon_uid"):  # those belong to clients
            assert flag(name) in text
            assert variable(name) in text
            assert row.help in text


@pytest.mark.parametrize("args", [["--help"], ["serve", "--help"], ["chat", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from llmaas.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'llama_cpp', 'rich', 'asyncio', 'msgpack'} & set(sys.modules)), file=sys.stderr)"
    )
    # serve is a daemon: asyncio is its own
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr.strip() in ("[]", "['asyncio']" if "serve" in args else "[]")


def test_the_version_is_the_packages(llmaas: Run) -> None:
    assert llmaas("--version").stdout == f"llmaas {package.__version__}\n"


@pytest.mark.parametrize("line", ["", "nonsense", "ctx", "ctx rm", "serve --nonsense", "chat --seed x"])
def test_wrong_usage_is_exit_code_2(line: str, llmaas: Run) -> None:
    done = llmaas(*line.split())
    assert done.returncode == 2
    assert "usage: llmaas" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_exit_code_2_and_names_its_source(llmaas: Run) -> None:
    done = llmaas("serve", LLMAAS_CELLS="lots")
    assert done.returncode == 2
    assert done.stderr.startswith("llmaas: setting cells (variable LLMAAS_CELLS) is 'lots'; it must be a whole number")
    assert "\n  hint: " in done.stderr


@pytest.mark.parametrize("args", [["ctx", "ls"], ["stats"], ["chat", "--once", "hello"], ["ctx", "rm", "x"]])
def test_without_a_daemon_every_client_command_says_what_to_do(args: list[str], llmaas: Run, tmp_path: Path) -> None:
    done = llmaas(*args, "--socket", str(tmp_path / "no.sock"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith("llmaas: no daemon serves ")
    assert "llmaas serve" in done.stderr.splitlines()[1]


def test_tracebacks_are_shown_only_when_asked_for(llmaas: Run) -> None:
    assert "Traceback" not in llmaas("stats", "--socket", "/nowhere/x").stderr
    assert "Traceback" in llmaas("stats", "--socket", "/nowhere/x", LLMAAS_DEBUG="1").stderr


def test_a_model_that_is_none_is_refused_before_anything_is_made(llmaas: Run, tmp_path: Path) -> None:
    fake = tmp_path / "m.gguf"
    fake.write_bytes(b"PK\x03\x04")
    done = llmaas("serve", "--model", str(fake), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "is not a GGUF model file" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_message_is_refused_before_connecting(text: str, llmaas: Run) -> None:
    done = llmaas("chat", stdin=text)
    assert done.returncode == 2
    assert "the message is empty" in done.stderr


def test_a_reader_that_leaves_is_no_error_message(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "serve", "--show-config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environ(tmp_path),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(30) == 141


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmaas.cli.stats.run", interrupted)
    assert main(["stats"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_only_the_chosen_command_gets_its_arguments() -> None:
    args = build_parser("ctx").parse_args(["ctx", "ls", "--json"])
    assert (args.command, args.json, args.app) == ("ctx", True, None)


def test_show_config_tells_every_value_and_its_source(llmaas: Run) -> None:
    done = llmaas("serve", "--show-config", "--cells", "4096", LLMAAS_POOL_BYTES="1.5G")
    lines = done.stdout.splitlines()
    assert [line.split(" = ")[0] for line in lines] == list(SETTINGS)
    assert "cells = 4096    # flag --cells" in lines
    assert "pool_bytes = 1.5G    # variable LLMAAS_POOL_BYTES" in lines


@pytest.mark.parametrize("line", ["budget --save", "limit 5 --of 1/x --save"])
def test_what_cannot_be_saved_is_refused_before_connecting(line: str, llmaas: Run) -> None:
    done = llmaas(*line.split())
    assert (done.returncode, "save" in done.stderr, "hint:" in done.stderr) == (2, True, True)
