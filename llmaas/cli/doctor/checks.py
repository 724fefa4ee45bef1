"""The doctor's examination: every check, in the order in which a starting daemon would meet the trouble.

Law: what a check cannot find out is a finding too; nothing ends the examination. Nothing is changed on disk but by
``repair`` (and by what every opening of the store does: it finishes or undoes what a crash interrupted).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata

from llmaas.cli.doctor.finding import Finding
from llmaas.cli.doctor.profile import profile_finding
from llmaas.cli.options import socket_of
from llmaas.cli.served_model import one_model
from llmaas.config.settings import Config
from llmaas.config.sources import LoadedConfig, unknown_variables
from llmaas.errors import LlmaasError
from llmaas.native import LIBRARIES, missing_libraries
from llmaas.socket_place import http_socket
from llmaas.version import __version__


def examine(found: LoadedConfig, environ: Mapping[str, str], *, deep: bool, repair: bool) -> Iterator[Finding]:
    """Every finding, as soon as it is made. To add a check, enter it here."""
    unserved = None
    try:
        found = one_model(found)
    except LlmaasError as error:
        unserved = error
    config = replace(found.config, socket=socket_of(found))
    yield from _guarded("config", lambda: check_config(found, environ))
    yield from _guarded("profile", lambda: iter([profile_finding(found)]))
    yield from _guarded("engine", check_engine)
    yield from _guarded("install", check_installation)
    if unserved is not None:
        yield Finding("models", "fail", unserved.message, unserved.hint)
    else:
        yield from _guarded("models", lambda: _models(config))
    yield from _guarded("model", lambda: _model(config))
    yield from _guarded("cpu", lambda: _host(config))
    yield from _guarded("termux", lambda: _termux(config, environ))
    yield from _guarded("disk", lambda: _disk(config))
    yield from _guarded("store", lambda: _store(config, environ, deep, repair))
    yield from _guarded("socket", lambda: _socket(config))
    yield from _guarded("http", lambda: _http(config))


def _guarded(about: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except LlmaasError as error:
        yield Finding(about, "fail", error.message, error.hint)
    except Exception as error:
        yield Finding(about, "fail", f"{type(error).__name__}: {error}", "This is a fault of llmaas; please report it.")


def check_config(found: LoadedConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    changed = [f"{name} ({origin})" for name, origin in found.origins.items() if origin != "default"]
    yield Finding("config", "ok", f"set: {', '.join(changed)}" if changed else "every setting has its default")
    for name, near in unknown_variables(environ):
        yield Finding("config", "warn", f"the variable {name} is no setting", f"Did you mean {near}?" if near else "")


def check_engine() -> Iterator[Finding]:
    try:
        version = metadata.version("llama-cpp-python")
        import llmaas.engine.llama.engine  # noqa: F401  (loads the shared libraries)
    except (ImportError, OSError, RuntimeError) as error:  # what a missing or broken library raises
        yield Finding("engine", "fail", f"llama.cpp cannot be loaded: {error}", "Install llmaas anew: scripts/setup.")
        return
    yield Finding("engine", "ok", f"llama-cpp-python {version}")


def check_installation(missing: Sequence[str] | None = None, client: str | None = None) -> Iterator[Finding]:
    """Nothing if llmaas is whole. ``missing`` and ``client`` (version of llmaas-client) are found out if not given."""
    missing = missing_libraries() if missing is None else missing
    if missing:
        lost = "; ".join(LIBRARIES[path] for path in missing)
        text = f"{len(missing)} of {len(LIBRARIES)} C libraries are missing: {lost}"
        yield Finding("install", "warn", text, "Install a C compiler, or a wheel for this platform, then llmaas again.")
    client = _version("llmaas-client") if client is None else client
    if client:
        text = f"llmaas-client {client} is installed, too, and has replaced files of llmaas {__version__}"
        yield Finding("install", "warn", text, "Uninstall llmaas-client, and install llmaas again: it has the client.")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


# The other checks are imported when they run: --help does not wait for the store and the model's library, and one that
# cannot be loaded is a finding.


def _models(config: Config) -> Iterator[Finding]:
    from llmaas.cli.doctor.models import check_models

    return check_models(config)


def _model(config: Config) -> Iterator[Finding]:
    from llmaas.cli.doctor.model import check_model

    return check_model(config)


def _host(config: Config) -> Iterator[Finding]:
    from llmaas.cli.doctor.host import check_host

    return check_host(config)


def _termux(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    from llmaas.cli.doctor.termux import check_termux

    return check_termux(config, environ)


def _disk(config: Config) -> Iterator[Finding]:
    from llmaas.cli.doctor.store import check_disk, check_flash

    yield from check_disk(config.data_dir, config.disk_bytes)
    yield from check_flash(config.data_dir, config.wear_budget)


def _store(config: Config, environ: Mapping[str, str], deep: bool, repair: bool) -> Iterator[Finding]:
    from llmaas.cli.doctor.store import check_store

    return check_store(config, environ, deep=deep, repair=repair)


def _http(config: Config) -> Iterator[Finding]:
    from llmaas.cli.doctor.daemon import answers
    from llmaas.cli.doctor.http import check_http

    place = http_socket(config.socket)
    return check_http(config.http, place, answers(place))


def _socket(config: Config) -> Iterator[Finding]:
    from llmaas.cli.doctor.daemon import check_socket

    return check_socket(config.socket, config.daemon_uid)
