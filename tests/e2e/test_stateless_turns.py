"""Conversations that are sent as a whole each time, on the real model: the same tokens as turns of one context."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

from llmaas.calls import Done, Generation, Turn
from llmaas.engine.fake import FakeEngine
from llmaas.records import AppId, Message, Resolved
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, House, house

SYSTEM = Message("system", "You answer in one short sentence, and you never ask anything back.")
QUESTIONS = ("What is the capital of France?", "And of Italy?", "Which of the two is larger?")


def real(gguf: Path) -> type[FakeEngine]:
    from llmaas.engine.llama.engine import LlamaEngine

    return cast(type[FakeEngine], functools.partial(LlamaEngine, gguf, n_threads=2))


async def ask(h: House, history: list[Message], app: AppId = APP) -> tuple[str, Done, Resolved]:
    found = await h.service.resolve(app, history)
    turn = Turn(tuple(history[found.n_messages :]))
    answer, done = await h.call(found.context.id, turn, Generation(12), app)
    return answer, done, found


@on_a_loop
async def test_stateless_turns_have_the_tokens_of_one_contexts_turns(tmp_path: Path, gguf: Path) -> None:
    engine: dict[str, Any] = {"n_cells": 1024, "n_seqs": 4}
    async with house(tmp_path, engine_type=real(gguf), engine=engine) as h:
        history, answers, contexts = [SYSTEM], [], set()
        for question in QUESTIONS:
            history.append(Message("user", question))
            answer, done, found = await ask(h, history)
            assert found.n_messages == (len(history) - 1 if contexts else 0) and not done.switch.recomputed
            history.append(Message("assistant", answer.strip()))
            answers.append(answer)
            contexts.add(found.context.id)
        named = await h.service.create(APP, name="named", system=SYSTEM.content)
        assert [(await h.say(named.id, question, 12))[0] for question in QUESTIONS] == answers
        (context,) = contexts
        assert h.tokens(context) == h.tokens(named.id)

        again, done, found = await ask(h, history[:-1])  # the last answer once more
        assert again == answers[-1] and found.context.id == context
        assert done.switch.recomputed == 0 and done.n_prompt <= 4

        # An edited question: what stands before it is not computed, and the tokens are those of a new conversation.
        edited = [*history[:3], Message("user", "And of Spain?")]
        _, done, found = await ask(h, edited)
        assert found.n_messages == 3
        other = AppId("1000/other")
        _, _, fresh = await ask(h, edited, other)
        n = done.n_tokens - done.n_kept
        assert fresh.n_messages == 0 and h.tokens(found.context.id)[:n] == h.tokens(fresh.context.id, other)[:n]
