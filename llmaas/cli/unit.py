"""The systemd unit of the daemon, as text.

Law: pure: what a unit says is a function of the command and the folders that it is given (systemd.service(5),
systemd.exec(5), systemd.resource-control(5)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MARK = "# Made by 'llmaas service install'."
"""First line of a unit that 'llmaas service' may replace and remove."""
_UNIT = """\
{mark} Your own settings belong into the settings file, or into
# {name}.d/own.conf beside this file: it is written anew by the next install.
[Unit]
Description=llmaas: one language model for every app
Documentation=man:llmaas(1)

[Service]
Type=notify
ExecStart={command}
{environment}Restart=on-failure
# A wrong configuration does not mend itself by restarting.
RestartPreventExitStatus=2
TimeoutStopSec=45
# Beside others that want the CPU it gets half of an equal share.
CPUWeight=50
# Sockets: %t/llmaas/llmaas.sock for apps, llmaas-admin.sock beside it for you (setting 'socket').
RestrictAddressFamilies=AF_UNIX
NoNewPrivileges=yes
# A bound for the worst case goes above the sum that 'llmaas doctor' prints:
# MemoryMax=2G

[Install]
WantedBy=default.target
"""


_SOCKET_UNIT = """\
{mark} It is written anew by the next install.
[Unit]
Description=llmaas: sockets, whose first client starts the daemon
Documentation=man:llmaas(1)

[Socket]
{listen}SocketMode=0600
DirectoryMode=0700

[Install]
WantedBy=sockets.target
"""


def socket_unit_text(paths: Sequence[str]) -> str:
    """The unit that listens on these paths for the service of the same name (systemd.socket(5))."""
    listen = "".join(f"ListenStream={path.replace('%', '%%')}\n" for path in paths)
    return _SOCKET_UNIT.format(mark=MARK, listen=listen)


def unit_text(name: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The unit ``name`` that runs ``command`` with these variables.

    >>> "ExecStart=/opt/llmaas serve\\n" in unit_text("llmaas.service", ["/opt/llmaas", "serve"], {})
    True
    """
    lines = "".join(f"Environment={_quoted(f'{key}={value}')}\n" for key, value in environment.items())
    words = " ".join(_quoted(word).replace("$", "$$") for word in command)
    return _UNIT.format(mark=MARK, name=name, command=words, environment=lines)


def _quoted(word: str) -> str:
    """``word`` as systemd reads it back: percent signs are specifiers, quotes keep spaces together."""
    word = word.replace("%", "%%")
    if word and not any(char.isspace() or char in "\"'\\;" for char in word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
