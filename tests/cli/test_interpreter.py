"""Pauses of the interpreter while the daemon serves."""

from __future__ import annotations

import gc
import sys

from llmaas.cli.interpreter import SWITCH_S, short_pauses


def test_what_is_loaded_is_not_collected_again_and_threads_wait_less_for_each_other() -> None:
    before = sys.getswitchinterval()
    with short_pauses():
        assert gc.get_freeze_count() > 1000
        assert abs(sys.getswitchinterval() - SWITCH_S) < 1e-6
    assert gc.get_freeze_count() == 0
    assert sys.getswitchinterval() == before
