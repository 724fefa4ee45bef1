"""The tests of both clients, by slots: what is true of a client by the socket is true of it by a slot."""

from __future__ import annotations

import functools

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.slots.grants import SlotSettings
from tests.api import test_async_client as of_async
from tests.api import test_client as of_sync
from tests.support.scripted import serving, serving_in_a_thread

BY_THE_SOCKET_ONLY = {"test_sync_a_daemon_that_dies_is_not_serving"}
"""Their daemon is a few lines of the test itself."""
globals().update(
    (name, test)
    for tests in (of_sync, of_async)
    for name, test in vars(tests).items()
    if name.startswith("test_") and name not in BY_THE_SOCKET_ONLY
)


@pytest.fixture(autouse=True, params=[64 << 10, 8 << 10], ids=["64k", "8k"])
def by_slots(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Slots that every answer fits into, and slots that it does not."""
    slots = SlotSettings(8, request.param)

    class SlotClient(AsyncClient):
        connect = functools.partial(AsyncClient.connect, transport="slots")

    monkeypatch.setattr(of_sync, "Client", functools.partial(Client, transport="slots"))
    monkeypatch.setattr(of_async, "AsyncClient", SlotClient)
    monkeypatch.setattr(of_sync, "serving_in_a_thread", functools.partial(serving_in_a_thread, slots=slots))
    monkeypatch.setattr(of_async, "serving", functools.partial(serving, slots=slots))
