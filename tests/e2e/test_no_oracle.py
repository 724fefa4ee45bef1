"""An app learns nothing of others' contexts and calls: what it asks of them is answered as if they were not there.

Not timed: the same path is taken, and the store is read as often.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llmaas.api import messages as msg
from llmaas.api.async_client import AsyncClient
from llmaas.api.record_maps import to_map
from llmaas.api.transfer_messages import DIGEST_BYTES
from llmaas.kvchunks.store.store import Store
from llmaas.records import CHUNK_TOKENS
from tests.support.daemon import HELLO, LONG, Daemon, active, ask, serving
from tests.support.http_edge import CHAT, http_edge
from tests.support.loop import on_a_loop
from tests.support.scripted import Peer, peer

ABOUT_A_CONTEXT = sorted(
    op for op, cls in msg.OPERATIONS.items() if any(field.name == "context" for field in fields(cls))
)
MORE: dict[str, list[dict[str, Any]]] = {
    "append": [{"prompt": "x"}, {"prompt": "x", "if_n_tokens": 3}, {"prompt": "x", "idempotency_key": "k"}],
    "generate": [{"prompt": "x"}, {}, {"json_schema": "{}"}, {"prompt": "x", "adapter": "red"}, {"max_tokens": 9000}],
    "fork": [{}, {"name": "copy"}, {"name": "inbox"}, {"n_messages": 1}, {"n_messages": 4096}],
    "truncate": [{"n_tokens": 0}, {"n_tokens": 10**6}, {"n_messages": 1}],
    "show": [{}, {"limit": 1}, {"after": "3"}],
    "hint": [{}],
    "delete": [{}],
    "migrate": [{}],
    "export": [{}],
    "export_chunks": [{}, {"indices": [0]}, {"indices": [0], "offset": 1}],
    "import_chunks": [
        {"root": bytes(DIGEST_BYTES), "kv": bytes(DIGEST_BYTES)},
        {"root": bytes(DIGEST_BYTES), "kv": bytes(DIGEST_BYTES), "trusted": True},
    ],
    "move": [{"node": "desk"}, {"node": "desk", "name": "copy"}],
}
CASES = [(op, more) for op in ABOUT_A_CONTEXT for more in MORE[op]]


class CountingStore(Store):
    """Counts what is asked of it."""

    asked: Counter[str]

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if callable(found) and not name.startswith("_"):
            vars(self).setdefault("asked", Counter())[name] += 1
        return found


@contextmanager
def asked(store: Store) -> Iterator[Callable[[], Counter[str]]]:
    """What is asked of the store in the block."""
    counter: Counter[str] = vars(store).setdefault("asked", Counter())
    before = counter.copy()
    yield lambda: counter - before


@asynccontextmanager
async def mail_and_spy(root: Path) -> AsyncIterator[tuple[Daemon, AsyncClient, str, Peer]]:
    """A daemon, the client of the app "mail", the id of its context "inbox", and a connection of another app. The
    daemon has not used the context since its start."""
    async with serving(root, store=CountingStore) as daemon, daemon.connect("mail") as mail:
        info = await mail.create(name="inbox")
        await ask(mail, "inbox", LONG)
        await daemon.until_idle()
    async with serving(root, store=CountingStore) as daemon, daemon.connect("mail") as mail:
        spy = await peer(daemon.socket, app="spy")
        yield daemon, mail, str(info.id), spy
        await spy.close()


def test_every_operation_about_a_context_is_looked_at() -> None:
    assert set(MORE) == set(ABOUT_A_CONTEXT)


@pytest.mark.parametrize(("op", "more"), CASES)
@on_a_loop
async def test_anothers_context_is_as_unknown_as_one_that_never_was(
    tmp_path: Path, op: str, more: dict[str, Any]
) -> None:
    async with mail_and_spy(tmp_path) as (daemon, _, inbox, spy):
        answers = []
        for ref in ("0123456789abcdef", inbox, "nobodys", "inbox", inbox.upper()):
            with asked(daemon.store) as reads:
                answer = await spy.ask(7, op, context=ref, **more)
                answers.append((str(answer).replace(ref, "REF"), reads()))
        first, reads_of_first = answers[0]
        assert "'unknown_context'" in first
        assert all(answer == answers[0] for answer in answers), answers
        assert not reads_of_first and active(daemon.service.stats()) == 0


@on_a_loop
async def test_the_calls_of_another_are_as_unknown_as_none(tmp_path: Path) -> None:
    async with mail_and_spy(tmp_path) as (daemon, mail, _, spy):
        running = mail.generate("inbox", HELLO, max_tokens=900)
        await anext(running)
        (call,) = [info.call for info in await mail.requests() if info.state == "running"]
        never = 10**9
        for op, more in (("cancel", {}), ("prioritize", {"priority": 9})):
            answers = []
            for number in (call, never, call - 1):  # it runs, never was, has ended
                answer = await spy.ask(7, op, call=number, **more)
                answers.append(str(answer).replace(f"call {number} ", "call N "))
            assert len(set(answers)) == 1 and "'unknown_request'" in answers[0], answers
            assert (await spy.ask(7, op, request=1, **more))["code"] == "unknown_request"
            assert (await spy.ask(7, op, call=call, everyone=True, **more))["code"] == "forbidden"
        assert (await spy.ask(8, "requests"))["result"] == []
        assert active(daemon.service.stats()) == 1
        await running.cancel()


@on_a_loop
async def test_anothers_history_is_not_found_and_its_chunks_are_not_used(tmp_path: Path) -> None:
    async with mail_and_spy(tmp_path) as (daemon, mail, inbox, _):
        shown = (await mail.show(inbox)).messages
        async with daemon.connect("spy") as spy:
            resolved, fresh = await spy.resolve(shown[:1]), await spy.resolve([{"role": "user", "content": "never"}])
            assert resolved.n_messages == fresh.n_messages == 0
            assert (resolved.context.n_tokens, resolved.context.tiers) == (fresh.context.n_tokens, fresh.context.tiers)
            done = await spy.generate(resolved.context.id, LONG, max_tokens=2).done()
            assert (done.switch.cells, done.switch.pool, done.switch.disk, done.switch.recomputed) == (0, 0, 0, 0)


@on_a_loop
async def test_what_a_text_would_be_found_by_does_not_tell_who_has_it(tmp_path: Path) -> None:
    async with mail_and_spy(tmp_path) as (daemon, mail, inbox, spy):
        said = [to_map(message) for message in (await mail.show(inbox)).messages]
        never = [{**each, "content": each["content"][::-1]} for each in said]
        more = {"roots": [bytes(16)], "answer": False}
        with asked(daemon.store) as reads:
            answers = [(await spy.ask(7, "marks_of", messages=each, **more))["result"] for each in (said, never)]
            assert [len(answer["chains"][0]) for answer in answers] == [
                answer["n_tokens"] // CHUNK_TOKENS * 8 for answer in answers
            ]
            refused = await spy.ask(8, "list_marks")
        assert refused["code"] == "forbidden" and not reads()
        before = answers[0]
        await mail.delete(inbox)
        assert (await spy.ask(9, "marks_of", messages=said, **more))["result"] == before, "it follows from the text"


@on_a_loop
async def test_names_of_others_can_be_used(tmp_path: Path) -> None:
    async with mail_and_spy(tmp_path) as (daemon, mail, inbox, _):
        async with daemon.connect("spy") as spy:
            assert (await spy.create(name="inbox")).id != inbox
            assert [info.name for info in await spy.contexts()] == ["inbox"]
            await spy.delete("inbox")
        assert [info.id for info in await mail.contexts()] == [inbox]


@on_a_loop
async def test_over_http_it_is_no_other(tmp_path: Path) -> None:
    async with (
        http_edge(tmp_path) as edge,
        edge.http(unix=True, app="mail") as mail,
        edge.http(unix=True, app="spy") as spy,
    ):
        whole = (await mail.post("/v1/responses", json={"model": "default", "input": "hello"})).json()
        named = (await mail.post("/v1/chat/completions", json={**CHAT, "llmaas": {"context": "inbox"}})).json()
        inbox, never = named["llmaas"]["context"], "0123456789abcdef"
        forged = whole["id"].replace(whole["id"][5:21], never)
        replies = []
        for ref in (whole["id"], forged):
            asked_for = {"model": "default", "input": "more", "previous_response_id": ref}
            reply = await spy.post("/v1/responses", json=asked_for)
            replies.append((reply.status_code, reply.text.replace(ref, "REF")))
        assert replies[0] == replies[1] and replies[0][0] == 404, replies
        for method in ("GET", "DELETE"):
            replies = []
            for ref in (inbox, "inbox", never):
                reply = await spy.request(method, f"/llmaas/contexts/{ref}")
                replies.append((reply.status_code, reply.text.replace(ref, "REF")))
            assert len(set(replies)) == 1 and replies[0][0] == 404, replies
        listed = (await spy.get("/llmaas/state")).json()
        assert listed["contexts"] == [] and listed["requests"] == []
        assert (await mail.get(f"/llmaas/contexts/{inbox}")).status_code == 200


@on_a_loop
async def test_of_many_guesses_none_is_answered_otherwise(tmp_path: Path) -> None:
    async with mail_and_spy(tmp_path) as (_, _, inbox, spy):
        guesses = [f"{int(inbox, 16) ^ (1 << bit):016x}" for bit in range(64)] + [inbox]
        answers = set()
        for guess in guesses:
            answer = await spy.ask(7, "hint", context=guess)
            answers.add(str(answer).replace(guess, "REF"))
        assert len(answers) == 1
        await asyncio.sleep(0)
