"""``llmaas complete``: a script with which a shell completes commands, flags and file names.

Law: made from the parser that reads the command line, so that it names what there is and nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from llmaas.cli.main import full_parser
from llmaas.errors import ConfigError

_EPILOG = """\
examples:
  llmaas complete bash > ~/.local/share/bash-completion/completions/llmaas
  llmaas complete zsh > ~/.zfunc/_llmaas    with "fpath+=~/.zfunc" before compinit in ~/.zshrc

Begin a new shell afterwards. It needs the package shtab: pip install 'llmaas[shell]'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def run(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise ConfigError("completion needs the package shtab", hint="pip install 'llmaas[shell]'") from None
    parser = full_parser()
    for action in _all_actions(parser):
        if action.type is Path or action.metavar in ("PATH", "FILE"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0


def _all_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _all_actions(sub)
