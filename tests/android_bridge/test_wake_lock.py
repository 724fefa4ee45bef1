"""The phone stays awake while the daemon has calls, and a little longer."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

from tests.support.drivers import BRIDGE


def program() -> Any:
    loader = SourceFileLoader("llmaas_wake_lock", str(BRIDGE / "termux" / "llmaas-wake-lock"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_it_is_held_while_there_are_calls_and_not_otherwise() -> None:
    found = program()
    said: list[str] = []
    lock = found.WakeLock(said.append)
    for active, now in ((0, 0.0), (1, 1.0), (3, 2.0), (0, 3.0), (0, 2.0 + found.RELEASE_S - 0.1)):
        lock.seen(active, now)
    assert said == ["termux-wake-lock"] and lock.held
    lock.seen(0, 2.0 + found.RELEASE_S)
    assert said == ["termux-wake-lock", "termux-wake-unlock"] and not lock.held
    lock.release()
    assert len(said) == 2, "it is not released twice"
    lock.seen(1, 100.0)
    lock.release()
    assert said[2:] == ["termux-wake-lock", "termux-wake-unlock"], "a daemon that is gone has no calls"
    lock.seen(0, 101.0)
    assert not lock.held


def test_a_command_that_is_missing_is_told_and_no_more(capsys: Any) -> None:
    program().command("no-such-command-of-termux")
    assert "failed" in capsys.readouterr().err
