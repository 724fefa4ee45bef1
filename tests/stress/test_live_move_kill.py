"""kill -9 of one of two nodes at each step of a move of an answer: one of them owns the conversation, with all that was
acknowledged, and what is kept of the answer is its beginning."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from llmaas.calls import Generation
from llmaas.errors import LlmaasError, NotServing
from llmaas.records import Message
from llmaas.service.span_records import imported_spans
from tests.stress.live_moves import ANSWER, Asking
from tests.stress.test_move_kill import LATE, paired, the_owner
from tests.support.books import book_of
from tests.support.daemon import CELLS
from tests.support.oracle import Oracle

TEXT = "tell me all of it"
STEPS = [(op, when) for op in ("stage", "grow", "take", "go_on", "settled") for when in ("before", "after")]
QUICK = {("asks", "take", "after"), ("answers", "take", "after"), ("answers", "grow", "before")}
CASES = [
    pytest.param(who, op, when, marks=() if (who, op, when) in QUICK else pytest.mark.slow)
    for who in ("asks", "answers")
    for op, when in STEPS
]


@pytest.mark.parametrize("who, op, when", CASES)
def test_one_owner_has_what_was_said_and_the_beginning_of_the_answer(
    tmp_path: Path, who: str, op: str, when: str
) -> None:
    phone, desk = paired(tmp_path)
    victim = phone if who == "asks" else desk
    for node in (phone, desk):
        node.start(*((who, op, when) if node is victim else ()))
    try:
        with phone.client() as client:
            client.create(name="x", system="Be brief.")
            client.ask("x", "the tide comes in and the tide goes out " * 4, max_tokens=9)
            before = book_of("x", imported_spans(client.export_context("x").spans))
        expected = Oracle(CELLS - 1).generate(before, [Message("user", TEXT)], None, Generation(max_tokens=ANSWER))
        assert expected is not None
        asking = Asking(phone, "x", TEXT)
        asking.wait_begun()
        with contextlib.suppress(NotServing, LlmaasError), phone.client() as client:
            client.move("x", "desk")
        assert victim.process is not None and victim.process.wait(LATE) == -signal.SIGKILL, "it should have died there"
        asking.end()
        assert tuple(asking.tokens) == expected.drawn[: len(asking.tokens)]
        victim.end(signal.SIGKILL)
        victim.start()
        owner = the_owner(phone, desk)
        late = op in ("go_on", "settled") or (op, when) == ("take", "after")
        assert owner is (desk if late else phone)
        with owner.client() as client:
            book = book_of("x", imported_spans(client.export_context("x").spans))
            kept = book.messages[len(before.messages) :]
            assert book.messages[: len(before.messages)] == before.messages
            assert not kept or (kept[0] == ("user", TEXT) and expected.text.startswith(kept[-1][1]))
            assert late <= bool(kept), "what has moved has what was told before"
            client.ask("x", "and?", max_tokens=5)
    finally:
        codes = [node.end(signal.SIGTERM) for node in (phone, desk)]
    assert codes == [0, 0], "each looks at its books at the end"
