"""A context that is damaged on disk: it is said at the start and at its first use, and the others work."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from llmaas.errors import ContextDamaged
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house


@on_a_loop
async def test_a_damaged_context_fails_alone_and_can_be_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "store"
    async with house(root) as h:
        for name in ("inbox", "notes"):
            await h.service.create(APP, name=name, system="Be brief.")
            await h.say(name, "Good morning.")
        whole = h.service.show(APP, "notes").messages
    with closing(sqlite3.connect(root / "index.sqlite")) as con, con:
        con.execute("UPDATE spans SET text = 'Good evening.' WHERE context = 1 AND role = 'user'")
    async with house(root) as h:
        assert "'inbox' of 1000/test" in caplog.text and "llmaas doctor --repair" in caplog.text
        assert {info.name: info.usable for info in h.service.contexts(APP)} == {"inbox": False, "notes": True}
        for use in (
            lambda: h.shown("inbox"),
            lambda: h.service.hint(APP, "inbox"),
            lambda: h.say("inbox", "And now?"),
            lambda: h.service.fork(APP, "inbox", name="copy"),
            lambda: h.service.truncate(APP, "inbox", n_tokens=1, n_messages=None),
            lambda: h.service.migrate(APP, "inbox"),
        ):
            with pytest.raises(
                ContextDamaged, match=r"'inbox' of 1000/test .*: \d+ of \d+ tokens could be read"
            ) as told:
                await use()
            assert "doctor --repair" in told.value.hint
        assert (await h.shown("notes")).messages == whole
        await h.say("notes", "And now?")
        await h.service.delete(APP, "inbox")
        await h.service.create(APP, name="inbox", system=None)
        await h.say("inbox", "Good morning.")
