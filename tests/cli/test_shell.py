"""Completion and manual page: made from the parser, by libraries that are optional."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmaas.cli.main import COMMANDS, main
from tests.cli.conftest import Run


def test_bash_completes_commands_and_flags(llmaas: Run, tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    for shell in ("bash", "zsh"):
        done = llmaas("complete", shell)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(word in done.stdout for word in (*COMMANDS, "--pool-bytes", "truncate"))
    script = tmp_path / "c.bash"
    script.write_text(llmaas("complete", "bash").stdout)
    ask = (
        f"source {script}; COMP_WORDS=(llmaas serve --pool); COMP_CWORD=2; "
        '_shtab_llmaas; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["--pool-bytes"], done.stderr


def test_the_manual_page_says_what_help_says(llmaas: Run) -> None:
    pytest.importorskip("argparse_manpage")
    page = llmaas("man").stdout
    assert page.startswith('.TH LLMAAS "1"')
    assert all(f"llmaas {name}" in page for name in COMMANDS)
    assert "exit codes:" in page


@pytest.mark.parametrize(("line", "library"), [("complete bash", "shtab"), ("man", "argparse_manpage")])
def test_without_the_library_it_says_what_to_install(
    line: str, library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (library, f"{library}.manpage"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(line.split()) == 2
    assert "pip install 'llmaas[shell]'" in capsys.readouterr().err
