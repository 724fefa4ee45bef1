"""``llmaas man``: the manual page, llmaas(1).

Law: made from the parser that reads the command line, so that it says what --help says.
"""

from __future__ import annotations

import argparse

from llmaas.cli.main import full_parser
from llmaas.errors import ConfigError
from llmaas.version import __version__

_EPILOG = """\
examples:
  llmaas man > llmaas.1 && man ./llmaas.1
  llmaas man > ~/.local/share/man/man1/llmaas.1    'man llmaas' finds it there

It needs the package argparse-manpage: pip install 'llmaas[shell]'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG


def run(args: argparse.Namespace) -> int:
    try:
        from argparse_manpage.manpage import Manpage
    except ImportError:
        raise ConfigError("man needs the package argparse-manpage", hint="pip install 'llmaas[shell]'") from None
    about = {"project_name": "llmaas", "version": __version__, "manual_title": "User Commands"}
    print(Manpage(full_parser(), about))
    return 0
