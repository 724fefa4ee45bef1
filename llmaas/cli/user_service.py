"""``llmaas service``: run the daemon at login, as a unit of the user's systemd.

Law: it writes and removes one file, which it has marked, and never one that somebody else wrote. Conversations and
settings stay, whatever becomes of the unit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from llmaas.api.daemon_address import admin_socket
from llmaas.cli.options import add_actions, loaded, socket_of
from llmaas.cli.out import print_note
from llmaas.cli.served_model import one_model, several
from llmaas.cli.unit import MARK, socket_unit_text, unit_text
from llmaas.config import models
from llmaas.config.boards import is_termux
from llmaas.config.settings import SETTINGS, variable
from llmaas.config_file import PREFIX, xdg
from llmaas.errors import ConfigError, MachineError

_EPILOG = """\
examples:
  llmaas service install           run the daemon now, and at each login
  llmaas service install --print   show the unit, and change nothing
  llmaas service install --on-demand   the first client starts it; nothing runs before that
  llmaas service status            is it installed, does it run, does it answer?
  llmaas service uninstall         stop it, and do not run it at login any more

It is a user's service: it needs no root, and reads your settings file. "loginctl enable-linger" lets it run from boot
on, without a login. Its log: journalctl --user -u llmaas. Conversations and settings stay when it is uninstalled.
"""
_NAME, _SOCKETS = "llmaas.service", "llmaas.socket"
_KEPT = ("XDG_CONFIG_HOME", "XDG_DATA_HOME")
"""Variables that say where files are: the unit is given them, for the user's systemd may not have them."""
_IN_TERMUX = "In Termux, android_bridge/termux/install.sh makes it a service of termux-services."
_NO_SYSTEMD = "Start 'llmaas serve' at login by other means; 'llmaas service install --print' shows what the unit does."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    action = add_actions(parser)
    install = action("install", _install, "write the unit, start the daemon, and start it at each login")
    install.add_argument("--print", action="store_true", dest="only_print", help="print the unit, change nothing")
    install.add_argument(
        "--on-demand", action="store_true", help="start the daemon when the first client connects, not at login"
    )
    action("uninstall", _uninstall, "stop the daemon and remove the unit; conversations and settings stay")
    action("status", _status, "say whether it is installed, runs, and answers; exit code 1 if it does not answer")


def run(args: argparse.Namespace) -> int:
    code: int = args.do(args)
    return code


def _install(args: argparse.Namespace) -> int:
    found = loaded(args)
    text = unit_text(_NAME, _command(found.file), {name: os.environ[name] for name in _KEPT if os.environ.get(name)})
    listen = socket_unit_text([str(path) for path in (socket_of(found), admin_socket(socket_of(found)))])
    if args.only_print:
        print(f"{text}\n{listen}" if args.on_demand else text, end="")
        return 0
    if not several(found):  # a unit that cannot start is refused here, not in a log that nobody reads
        models.find(one_model(found).config.model)
    _refuse_without_systemd()
    unit = unit_file(os.environ)
    _refuse_foreign(unit)
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text(text, "utf-8")
    sockets = unit.with_name(_SOCKETS)
    _refuse_foreign(sockets)
    if args.on_demand:
        _change_to(sockets, listen)
        print(f"installed {unit} and {sockets}; the first client starts the daemon")
    else:
        if sockets.exists():
            _systemctl("disable", "--now", _SOCKETS)
            sockets.unlink()
        _systemctl("daemon-reload")
        _systemctl("enable", _NAME)
        _systemctl("restart", _NAME)
        print(f"installed {unit}; the daemon runs now and at each login")
    for name in sorted(set(os.environ) & {variable(setting) for setting in SETTINGS}):
        setting = name.removeprefix(PREFIX).lower()
        print_note(f"the service does not have the variable {name}: put {setting} into the settings file")
    return 0


def _uninstall(args: argparse.Namespace) -> int:
    unit = unit_file(os.environ)
    if not unit.exists():
        print(f"not installed: there is no {unit}")
        return 0
    _refuse_foreign(unit)
    sockets = unit.with_name(_SOCKETS)
    if shutil.which("systemctl"):
        if sockets.exists():
            _systemctl("disable", "--now", _SOCKETS)
        _systemctl("disable", "--now", _NAME)
    unit.unlink()
    sockets.unlink(missing_ok=True)
    if shutil.which("systemctl"):
        _systemctl("daemon-reload")
    print(f"removed {unit}; conversations are still in {loaded(args).config.data_dir}")
    return 0


def _change_to(sockets: Path, text: str) -> None:
    """Let systemd listen, with the daemon, which holds the sockets until then, stopped first."""
    sockets.write_text(text, "utf-8")
    _systemctl("daemon-reload")
    _systemctl("disable", "--now", _NAME)
    _systemctl("enable", _SOCKETS)
    _systemctl("restart", _SOCKETS)


def _status(args: argparse.Namespace) -> int:
    from llmaas.cli.doctor.daemon import answers

    unit, socket = unit_file(os.environ), socket_of(loaded(args))
    systemd = shutil.which("systemctl") is not None
    print(f"unit    {unit if unit.exists() else 'not installed'}")
    print(f"login   {_ask('is-enabled') if systemd else 'this system has no systemctl'}")
    print(f"state   {_ask('is-active') if systemd else 'unknown'}")
    well = socket.is_socket() and answers(socket)
    print(f"socket  {socket}: {'a daemon answers' if well else 'no daemon answers'}")
    return 0 if well else 1


def unit_file(environ: Mapping[str, str]) -> Path:
    """Where the user's systemd looks for the unit. Raises ConfigError without a home directory."""
    return xdg(environ, "XDG_CONFIG_HOME", ".config") / "systemd" / "user" / _NAME


def _command(config: Path | None) -> list[str]:
    """This very llmaas, by its full path: the user's systemd has another PATH."""
    script = Path(sys.executable).with_name("llmaas")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "llmaas"]
    return [*command, "serve", *(["--config", str(config)] if config else [])]


def _refuse_foreign(unit: Path) -> None:
    if unit.exists() and not unit.read_text("utf-8", "replace").startswith(MARK):
        raise ConfigError(f"{unit} was not made by 'llmaas service'", hint="Move it away, if you do not need it.")


def _refuse_without_systemd() -> None:
    if not shutil.which("systemctl"):
        raise MachineError(
            "this system has no systemctl: 'llmaas service' is for systemd only",
            hint=_IN_TERMUX if is_termux(os.environ) else _NO_SYSTEMD,
        )


def _systemctl(*words: str) -> None:
    """Raises MachineError with what systemctl says."""
    done = _user_systemctl(*words)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise MachineError(
            f"'systemctl --user {' '.join(words)}' failed: {said}",
            hint="A user's systemd runs in a login session; in 'su' or a container there may be none.",
        )


def _ask(question: str) -> str:
    done = _user_systemctl(question, _NAME)
    return done.stdout.strip() or " ".join(done.stderr.split()) or "unknown"


def _user_systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", "--user", *words], capture_output=True, text=True, check=False)
