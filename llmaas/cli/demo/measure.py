"""What the demo asks of its daemon besides the apps' turns: rest, a context computed anew, where the tokens are.

Law: measures by the daemon's own replies; knows no app's process.
"""

from __future__ import annotations

import threading

from llmaas.api.client import Client
from llmaas.clock import RealClock
from llmaas.errors import Internal, MachineError
from llmaas.records import Message

_QUIET_S = 0.1
_SETTLE_S = 60.0


def wait_idle(client: Client) -> None:
    """Wait until the daemon has nothing to do: no request runs, no chunk is saved or written.

    Raises MachineError if that takes longer than a minute.
    """
    clock, pause, before = RealClock(), threading.Event(), None
    late = clock.now() + _SETTLE_S
    while clock.now() < late:
        stats = client.stats()
        now = (stats["counts"], stats["pool_bytes"], stats["requests"]["active"])
        if now == before and not stats["requests"]["active"]:
            return
        before = now
        pause.wait(_QUIET_S)
    raise MachineError(f"the daemon is still busy after {_SETTLE_S:.0f} s")


def prefill_anew(client: Client, app: str) -> tuple[int, float]:
    """Tokens of an app's conversation, and the milliseconds to the first token of them in a new context.

    The context is one of ``client``'s app: chunks are shared inside an app only, so that nothing can be reused.
    """
    original = next(c for c in client.contexts(everyone=True) if c.app.endswith(f"/{app}"))
    messages = list(client.show(original.id, everyone=True).messages)
    if messages[-1].role == "assistant":
        messages.pop()
    context = client.create()
    done = client.generate(context.id, [Message(m.role, m.content) for m in messages], max_tokens=1).done
    client.delete(context.id)
    if done.switch.tokens:
        raise Internal(f"{done.switch.tokens} tokens of a new context were there already")
    return done.n_prompt, done.ttft_ms - done.queue_ms


def tokens_by_tier(client: Client) -> dict[str, int]:
    """Tokens of all contexts by the tier of their best copy."""
    tiers = [c.tiers for c in client.contexts(everyone=True)]
    return dict(zip(("cells", "pool", "disk", "none"), map(sum, zip(*tiers, strict=True)), strict=True))


def tokens_by_app(client: Client) -> dict[str, int]:
    return {c.app.split("/")[1]: c.n_tokens for c in client.contexts(everyone=True)}
