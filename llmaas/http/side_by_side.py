"""Several coroutines at once, all or nothing.

Law: if one fails, the others are cancelled and have ended before its error is raised. (``asyncio.TaskGroup`` does that
from Python 3.11 on.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def side_by_side(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
