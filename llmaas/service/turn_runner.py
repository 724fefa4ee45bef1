"""One call's turn: prepared in memory, computed by the planner, made durable or undone.

Law: a call holds its context's lock from its first look at the tokens until its turn is committed or undone. What a
reply acknowledges is durable before the reply leaves.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from dataclasses import replace
from functools import partial

from llmaas.calls import Done
from llmaas.errors import BadRequest, Cancelled, Expired, LlmaasError, NoNumbers
from llmaas.kvchunks.store.store import KeyedTurn, Span
from llmaas.planner.actions import Finish, Outcome
from llmaas.planner.events import Submitted
from llmaas.service.anonymous import AnonymousContexts
from llmaas.service.call import Call, answer_spans, done
from llmaas.service.constraints import ConstraintHolder
from llmaas.service.interpreter import Interpreter
from llmaas.service.keyed_turns import ToldTurn, continue_turn, ended, keyed_turn, recall, refuse_other_length, tell
from llmaas.service.live_context import LiveContext, publish_kv, root_app
from llmaas.service.parts import ServiceParts
from llmaas.service.quotas import span_size
from llmaas.service.refusals import failure, refuse_if_deleted, refuse_if_oversized, refuse_if_too_long
from llmaas.service.settle import may_settle, settle, settled
from llmaas.service.shift import is_tight, restore, shift
from llmaas.service.stored_contexts import StoredContexts
from llmaas.service.turn_spans import turn_spans

log = logging.getLogger(__name__)


class TurnRunner:
    """Runs the turns of calls; many at once, one per context. ``ctx_limit``: tokens of the longest context;
    ``keep_thoughts``: what an answer says stays in the context as it is."""

    def __init__(
        self,
        parts: ServiceParts,
        interpreter: Interpreter,
        constraints: ConstraintHolder,
        anonymous: AnonymousContexts,
        stored: StoredContexts,
        *,
        ctx_limit: int,
        keep_thoughts: bool = False,
    ) -> None:
        self._engine, self._store, self._store_thread = parts.engine, parts.store, parts.store_thread
        self._clock, self._adapters, self._quotas = parts.clock, parts.adapters, parts.quotas
        self._anonymous, self._stored, self._histories = anonymous, stored, parts.histories
        self._text_threads, self._constraints = parts.text_threads, constraints
        self._dispatch, self._is_stored = interpreter.dispatch, interpreter.stored
        self._ctx_limit, self._keep_thoughts = ctx_limit, keep_thoughts

    async def run(self, call: Call) -> Done:
        """The call's terminal reply. The caller holds the context's lock. Raises LlmaasError, and then the context is
        as it was before, except after Cancelled or Expired with tokens generated."""
        before = await self._recall(call)
        if isinstance(before, ToldTurn):
            call.control.told_again = True
            return tell(before, call.emit)
        await self._constraints.prepare(call)
        refuse_if_deleted(call.live)
        await self._stored.read(call.live)
        _refuse_if_cancelled(call)
        refuse_if_oversized(call.pending.turn, self._ctx_limit, self._engine.token_bytes)
        call.pending.base = len(call.live.tokens)
        try:
            if before is None:
                refuse_other_length(call.spec, call.pending.base)
                await self._settle(call)
                await self._begin(call)
            else:
                await self._continue(call, before)
            adapter = self._choose_adapter(call)
            await self._make_room(call)
            if adapter != call.live.adapter:
                call.pending.adapter_before = call.live.adapter, call.live.root
            self._set_adapter(call.live, adapter, self._adapters.root(root_app(call.live.row), adapter))
            call.control.planned = True
            finish = await self._compute(call)
        except BaseException:  # the planner does not know the call, or no more
            self._undo(call, call.live.n_kv)
            raise
        return await self._commit(call, finish)

    # -- before the planner

    async def _recall(self, call: Call) -> ToldTurn | KeyedTurn | None:
        """What became of a call with an idempotency key when it was made before. Raises KeyReused."""
        refuse_if_deleted(call.live)
        if call.spec.idempotency_key is None:
            return None
        return await self._store_thread.run(call.live.row.app, recall, self._store, call.live.id, call.spec)

    async def _continue(self, call: Call, turn: KeyedTurn) -> None:
        """Go on with the turn that was interrupted, and tell what had been drawn of its answer. Raises Conflict."""
        live = call.live
        stored = await self._store_thread.run(live.row.app, self._store.spans, live.id)
        drawn = continue_turn(call, turn, stored)
        refuse_other_length(call.spec, call.pending.base)
        self._publish(live, min(live.n_kv, len(live.tokens)))
        if drawn:
            resume, now = call.answer.resume, self._clock.now()
            call.emit(await self._text_threads.run(live, call.pending.turn, resume, drawn, self._engine, now))

    async def _settle(self, call: Call) -> None:
        """Write the context's past anew in memory, if the template has it otherwise now that a turn follows."""
        live, pending = call.live, call.pending
        if self._keep_thoughts or not may_settle(live, pending.turn):
            return  # most first turns: the way to a thread and back takes the loop three turns more
        look = partial(settled, answer=call.spec.generation is not None, limit=self._ctx_limit)
        new = await self._text_threads.run(live, pending.turn, look, self._engine, live, pending.turn)
        if new is not None:
            stored = await self._store_thread.run(live.row.app, self._store.spans, live.id)
            self._publish(live, min(live.n_kv, settle(pending, stored, new)))

    async def _begin(self, call: Call) -> None:
        """Add the turn's tokens to the context in memory."""
        live, pending = call.live, call.pending
        if not call.hint:
            make = partial(turn_spans, answer=call.spec.generation is not None, limit=self._ctx_limit)
            pending.spans = await self._text_threads.run(live, pending.turn, make, self._engine, live, pending.turn)
        pending.base = len(live.tokens)
        if call.spec.generation and not pending.base + pending.n_prompt:
            raise BadRequest("there is nothing to answer: the context is empty", hint="Send messages or a prompt.")
        if not call.hint:
            await self._anonymous.fit_text(live.row.app, span_size(pending.spans), live)
            self._quotas.refuse_text(live.row.app, span_size(pending.spans))
        for span in pending.spans:
            live.tokens.extend(span.tokens)
        if live.draft:
            self._publish(live, live.take_draft(pending.base))
        self._quotas.count(live)

    def _choose_adapter(self, call: Call) -> str:
        """The name of the adapter that the call wants. Raises UnknownAdapter."""
        live, wanted = call.live, call.spec.terms.adapter
        name = live.adapter if wanted is None else wanted
        call.control.adapter = self._adapters.file(name, live.row.name if name == live.adapter else None)
        return name

    async def _make_room(self, call: Call) -> None:
        """Drop old messages if the context is nearly full and the call allows it. Raises ContextTooLong, Cancelled."""
        if is_tight(call, self._ctx_limit):
            await self._shift(call, call.live.n_kv)
        _refuse_if_cancelled(call)
        refuse_if_too_long(len(call.live.tokens), self._ctx_limit)

    async def _shift(self, call: Call, n_kv: int) -> bool:
        """Drop old messages of a context whose first ``n_kv`` tokens are in CELLS or have keys.

        False if there are none to drop, or if this failed after the answer had begun: it then ends as it would without.
        """
        try:
            stored = await self._store_thread.run(call.live.row.app, self._store.spans, call.live.id)
            do, engine, limit = shift, self._engine, self._ctx_limit
            unchanged = await self._text_threads.run(call.live, call.pending.turn, do, call, stored, engine, limit)
        except LlmaasError as e:
            if not call.control.planned:
                raise
            log.warning("request %d cannot drop old messages: %s", call.id, e)
            return False
        if unchanged is not None:
            self._publish(call.live, min(n_kv, unchanged))
        return unchanged is not None

    # -- in the planner

    async def _compute(self, call: Call) -> Finish:
        """Have the planner compute the turn and its answer, with a shift whenever the context has become full."""
        live = call.live
        finish = await self._submit(call)
        while finish.outcome is Outcome.CONTEXT_FULL and call.spec.shifts:
            if not await self._shift(call, max(live.n_kv, finish.n_kv)):
                break
            finish = replace(finish, n_kv=0)  # the shift has published how much of the KV holds
            if call.control.cancelled:
                finish = replace(finish, outcome=Outcome.CANCELLED)
            elif len(live.tokens) >= self._ctx_limit:
                break
            else:
                finish = await self._submit(call)
        return finish

    async def _submit(self, call: Call) -> Finish:
        """Have the planner compute all tokens of the context, and what is left of the answer."""
        live, terms, control = call.live, call.spec.terms, call.control
        if (n := live.n_covered(self._is_stored)) > live.n_kv:
            self._publish(live, n)
        control.finished = asyncio.get_running_loop().create_future()
        adapter = control.adapter
        self._dispatch(
            Submitted(
                request=call.id,
                context=live.id,
                n_total=len(live.tokens),
                max_new=call.spec.max_new - len(call.answer.drawn),
                priority=control.priority,
                deadline=None if terms.deadline_s is None else call.submitted + terms.deadline_s,
                rate=terms.rate,
                adapter=adapter.fingerprint if adapter else "",
                adapter_bytes=adapter.size_bytes if adapter else 0,
            )
        )
        return await control.finished

    # -- after the planner

    async def _commit(self, call: Call, finish: Finish) -> Done:
        """Make the turn durable, and let its chunks be saved; or undo it."""
        live = call.live
        failed = finish.outcome in (Outcome.CANCELLED, Outcome.EXPIRED, Outcome.ENGINE_FAILED)
        n_kv = live.n_kv
        try:
            goes_on = failed and call.control.successor is not None
            rest = None if goes_on else call.answer.last_piece()
            if rest and not (failed and call.spec.idempotency_key is not None):
                call.emit(rest)  # else it may be told otherwise, when the answer goes on
            n_kv = min(max(live.n_kv, finish.n_kv), call.answer.cut_untold(self._engine))
            n_kept = len(call.answer.kept)
            spans = [*call.pending.spans, *answer_spans(call)]
            if finish.outcome is Outcome.ENGINE_FAILED or call.hold.error or (failed and not n_kept):
                raise call.hold.error or failure(finish.outcome)
            now = self._clock.wall()
            outcome = ended(call, finish.outcome)
            told = done(call, outcome, self._clock.now()) if outcome else None
            if spans or call.pending.adapter_before or call.spec.idempotency_key is not None:
                await self._store_thread.run(live.row.app, self._write, call, spans, now, told)
        except BaseException as error:
            # Where NaN came of it, nothing that was computed before is gone on from.
            keep = call.hold.error is None and isinstance(error, Cancelled | Expired)
            self._undo(call, 0 if isinstance(call.hold.error, NoNumbers) else n_kv, keep=keep)
            raise
        live.add_marks(spans)
        self._quotas.count(live)
        self._histories.changed(live)
        if not call.hint:
            live.last_used, live.used = now, self._clock.now()
        self._publish(live, n_kv)
        if failed:
            raise failure(finish.outcome, n_kept, len(live.tokens))
        if told is None or call.spec.idempotency_key is None:
            return done(call, finish.outcome, self._clock.now())
        return told

    def _write(self, call: Call, spans: list[Span], now: float, told: Done | None) -> None:
        """Write the turn to the store, and what was dropped for it, in one transaction. On the store's thread."""
        live, pending, adapter = call.live, call.pending, call.live.adapter
        turn = keyed_turn(call, len(spans), told)
        if pending.shift is None:
            self._store.append(live.id, spans, expect=pending.base, now=now, adapter=adapter, turn=turn)
        else:
            old, spans = len(pending.shift.tokens), [*pending.shift.kept, *spans]
            self._store.rewrite(live.id, spans, expect=old, now=now, adapter=adapter, turn=turn)

    def _undo(self, call: Call, n_kv: int, *, keep: bool = False) -> None:
        """Leave the context as it was before the call; ``n_kv`` leading tokens are in CELLS or have keys. ``keep``: the
        KV of the turn stays, since the same turn may come again."""
        live, tokens = call.live, call.live.tokens[:]
        same = restore(call.pending)
        live.draft = array("i")
        if keep and n_kv > same and call.pending.shift is None and call.pending.adapter_before is None:
            live.draft = tokens[same:n_kv]
            same = n_kv
        self._publish(live, min(same, n_kv))
        self._quotas.count(call.live)
        if call.pending.adapter_before:
            self._set_adapter(call.live, *call.pending.adapter_before)

    def _set_adapter(self, live: LiveContext, name: str, root: bytes) -> None:
        """The context uses this adapter from now on; KV of another one (or of another file of that name) is void."""
        live.adapter = name
        if live.root == root:
            return
        self._publish(live, 0)
        live.root = root
        self._publish(live, live.n_covered(self._is_stored))

    def _publish(self, live: LiveContext, n_kv: int) -> None:
        publish_kv(live, n_kv, self._dispatch)


def _refuse_if_cancelled(call: Call) -> None:
    if call.control.cancelled:
        raise Cancelled("cancelled before it began")
