"""A decorator for tests that are coroutines: each runs on an event loop of its own, for a limited time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

SECONDS = 120.0
"""How long a test may run: less than pytest's own timeout, whose report does not show where a coroutine waits."""


_Test = Callable[..., Coroutine[Any, Any, None]]


def on_a_loop(test: _Test) -> Callable[..., None]:
    """Makes a test function of a coroutine function. Goes nearest to ``async def``, under all other decorators.

    The test fails with an AssertionError when it runs for more than ``SECONDS``; the traceback shows the ``await``.
    """
    return on_a_loop_for(SECONDS)(test)


def on_a_loop_for(seconds: float) -> Callable[[_Test], Callable[..., None]]:
    """``on_a_loop`` for a test that may take so long."""

    def decorate(test: _Test) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **fixtures: Any) -> None:
            asyncio.run(_limited(test(*args, **fixtures), seconds))

        return run

    return decorate


async def _limited(test: Coroutine[Any, Any, None], seconds: float) -> None:
    running = asyncio.ensure_future(test)
    try:
        await asyncio.wait_for(running, seconds)
    except asyncio.TimeoutError as error:
        if not running.cancelled():
            raise  # the test's own timeout
        raise AssertionError(f"the test still ran after {seconds:g} s") from error
