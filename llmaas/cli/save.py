"""``--save`` of commands that change the running daemon: the change holds after its next start, too.

Law: only what the daemon has accepted is saved.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from llmaas.cli.options import loaded
from llmaas.cli.out import print_note
from llmaas.config.settings import variable
from llmaas.config.settings_file import default_file, save


def add_save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--save", action="store_true", help="write it into the settings file as well, for the daemon's next start"
    )


def save_settings(args: argparse.Namespace, values: Mapping[str, str | float]) -> None:
    """Write ``values`` into the file that this command read (``--config``, LLMAAS_CONFIG), else the default file.

    Raises ConfigError.
    """
    file = loaded(args).file or default_file(os.environ)
    save(file, values)
    print_note(f"saved in {file}: {', '.join(f'{name} = {value}' for name, value in values.items())}")
    for name in values:
        if variable(name) in os.environ:
            print_note(f"the variable {variable(name)} is set; where a daemon has it, it counts and the file does not")
