"""All attacks, by name, and the process in which one runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.stress.attacks import calls, connections, contexts, frames, histories
from tests.stress.attacks.peer import Attacker

RETRY_S = 0.01


@dataclass(frozen=True)
class Attack:
    """``run`` is one go; when it ends, or the daemon hangs up, there is another one."""

    run: Callable[[Attacker], Awaitable[None]]
    prepares: bool = False
    """Whether it calls ``Attacker.begin`` when what it needs is there."""
    many_names: bool = False
    """Whether calls come under several names. Each name is an app with a share of its own, so another app gets one of
    many shares, and waits for a running period and some steps."""
    most_files: int | None = None
    """Files that the daemon may have open, if that is part of the attack: newcomers may be kept waiting then."""

    @property
    def name(self) -> str:
        return self.run.__name__.replace("_", "-")

    @property
    def summary(self) -> str:
        return " ".join((self.run.__doc__ or "").split())


_RUNS = [
    frames.empty_messages_1500,
    frames.empty_messages_4096,
    frames.empty_messages_100000,
    frames.endless_prompt,
    frames.empty_maps,
    frames.wide_and_legal,
    frames.deep_nesting,
    frames.begun_frames,
    frames.dripped_frames,
    frames.broken_frames,
    frames.pipelined,
    frames.pings,
    frames.bad_requests,
    frames.long_names,
    connections.deaf_to_answers,
    connections.idle,
    connections.idle_under_many_names,
    connections.idle_at_the_admin_socket,
    connections.silent,
    connections.come_and_go,
    connections.wrong_tokens,
    connections.leave_at_once,
    calls.queued_calls,
    calls.urgent_calls,
    calls.slow_answers,
    calls.costly_sampling,
    calls.cancels,
    calls.priorities,
    calls.short_deadlines,
    calls.repeating_grammars,
    calls.bracket_patterns,
    calls.nested_references,
    contexts.thousands,
    contexts.deletes,
    contexts.bad_adapters,
    histories.resolves,
    histories.keyed_again,
    histories.biases,
    histories.too_many_biases,
    frames.prompts_at_the_limit,
    calls.long_answers,
    calls.fresh_grammars,
    contexts.forks,
    contexts.truncates,
    contexts.thrashing,
    histories.stateless,
]
_PREPARED = [
    connections.deaf,
    calls.hints,
    calls.hints_of_the_gone,
    contexts.lists,
    contexts.shows,
    histories.beginnings,
]
_UNDER_MANY_NAMES = [
    calls.queued_calls_of_many,
    histories.ever_new_names,
    histories.wait_and_leave,
]
_ALL = [
    *map(Attack, _RUNS),
    *(Attack(run, prepares=True) for run in _PREPARED),
    *(Attack(run, many_names=True) for run in _UNDER_MANY_NAMES),
    Attack(connections.accept_flood, most_files=128),
]
ATTACKS = {found.name: found for found in _ALL}


def attack(name: str, socket: Path, scratch: Path, begun: Any) -> None:
    """Attack until the process is killed. Sets ``begun``, an event, when it begins."""
    os.nice(5)  # what it takes of the CPU is not the daemon's doing
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found, attacker = ATTACKS[name], Attacker(socket, scratch, begun.set)
    if not found.prepares:
        attacker.begin()
    asyncio.run(_go_on(found, attacker))


async def _go_on(attack: Attack, attacker: Attacker) -> None:
    while True:
        with contextlib.suppress(OSError, EOFError):  # the daemon hung up
            await attack.run(attacker)
        attacker.drop_all()
        await asyncio.sleep(RETRY_S)
