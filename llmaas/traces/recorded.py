"""A trace from the events of a flight recording: when calls came and how long they were, and nothing that was said.

Law: names become hashes by a key, which is drawn anew for each trace unless the caller gives one; no text and no token
is in a recording in the first place. What is left of people are times and lengths.

A recording does not say what each token of an answer was, only how much KV a context has when its call has ended. So
``generate`` can be one token too many, for an answer that ended with its first token. A context that was there before
the recording, or that lost tokens (truncated, or full and shifted), begins anew, with all that it has as prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from llmaas.errors import BadRequest
from llmaas.planner.events import ContextChanged, ContextClosed, ContextOpened, Event, Submitted
from llmaas.records import AppId, ContextId
from llmaas.traces.call import TraceCall

_DIGEST_BYTES = 5
_MOST_KEY_BYTES = 64
"""Of blake2b."""


@dataclass(slots=True)
class _Known:
    """A context of the recording. ``n_kv``: of its tokens that have KV; ``n_tokens``: that the trace has given it."""

    app: str
    name: str
    n_kv: int
    n_tokens: int = 0
    prompted: int = 0
    """Tokens when its last call's answer began."""
    max_new: int = 0
    """Of its last call."""
    begun_anew: int = 0
    """How often it has lost tokens."""
    call: int | None = None
    """Its last call, by its place in the trace."""


@dataclass(slots=True)
class _Reader:
    key: bytes
    contexts: dict[ContextId, _Known] = field(default_factory=dict)
    calls: list[TraceCall] = field(default_factory=list)
    begin: float = 0.0

    def hashed(self, kind: str, name: str) -> str:
        return f"{kind}-{hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES, key=self.key).hexdigest()}"

    def open(self, context: ContextId, app: AppId, n_kv: int) -> _Known:
        known = _Known(self.hashed("app", str(app)), self.hashed("context", str(context)), n_kv)
        self.contexts[context] = known
        return known

    def submitted(self, event: Submitted, now: float) -> None:
        known = self.contexts.get(event.context)
        if known is None:
            known = self.open(event.context, AppId(str(event.context).rpartition("/")[0]), 0)
        if event.n_total < known.n_tokens - 1:
            self._lost(known)
        prompt = max(0, event.n_total - known.n_tokens)
        if not prompt and not event.max_new:
            return  # a hint: it adds nothing
        self.begin = self.begin if self.calls else now
        self.calls.append(
            TraceCall(
                t=round(now - self.begin, 3),
                app=known.app,
                context=f"{known.name}.{known.begun_anew}",
                prompt=prompt,
                generate=min(1, event.max_new),  # until it is known
                priority=event.priority,
                deadline_s=None if event.deadline is None else max(0.001, event.deadline - now),
                rate=event.rate,
            )
        )
        known.call, known.max_new = len(self.calls) - 1, event.max_new
        known.prompted = known.n_tokens = event.n_total

    def changed(self, event: ContextChanged) -> None:
        known = self.contexts.get(event.context)
        if known is None:
            return
        if event.n_kv < known.n_kv:
            self._lost(known)
        known.n_kv = event.n_kv
        drawn = min(event.n_kv + 1 - known.prompted, known.max_new)
        if known.call is not None and drawn > 0:
            self.calls[known.call] = replace(self.calls[known.call], generate=drawn)
            known.n_tokens = known.prompted + drawn

    def _lost(self, known: _Known) -> None:
        known.begun_anew += 1
        known.n_tokens, known.call = 0, None


def from_recording(events: Iterable[tuple[Event, float]], key: bytes) -> list[TraceCall]:
    """The calls of a recording. ``key``, of up to 64 bytes, hashes names. Raises BadRequest if there is no call."""
    reader = _Reader(key[:_MOST_KEY_BYTES])
    for event, now in events:
        match event:
            case ContextOpened():
                reader.open(event.context, event.app, event.n_kv)
            case ContextClosed():
                reader.contexts.pop(event.context, None)
            case ContextChanged():
                reader.changed(event)
            case Submitted():
                reader.submitted(event, now)
            case _:
                pass
    if not reader.calls:
        raise BadRequest("the recording has no call", hint="Record while apps call: 'llmaas serve --record FILE'.")
    return reader.calls
