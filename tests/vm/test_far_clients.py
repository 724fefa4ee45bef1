"""The tests of both clients and of the service's side, by slots that a host and its guest share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmaas.api.async_client import AsyncClient
from llmaas.api.client import Client
from llmaas.slots.grants import SlotSettings
from tests.api import test_async_client as of_async
from tests.api import test_client as of_sync
from tests.slots import test_service as of_service
from tests.support.far_slots import serving_far, serving_far_in_a_thread

NOT_THESE = {
    "test_sync_a_daemon_that_dies_is_not_serving",  # its daemon is a few lines of the test itself
    # What memory that was lent has otherwise: tests/slots/test_lent.py.
    "test_a_daemon_without_slots_says_so_and_a_wrong_transport_is_refused",
    "test_async_clients_are_told_the_same",
    "test_slots_are_bounded_together_and_for_each_app_and_come_back",
    "test_a_client_that_does_not_read_is_dropped",  # its limits are the guest's daemon's; the line has its own
}
globals().update(
    (name, test)
    for tests in (of_sync, of_async, of_service)
    for name, test in vars(tests).items()
    if name.startswith("test_") and name not in NOT_THESE
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "llmaas.sock"


def _lent(serve: Callable[..., Any]) -> Callable[..., Any]:
    """With memory of the guest in place of the slots that the test asks for: small, so that answers pass in parts."""

    def served(path: Path, slots: SlotSettings | None = None, **options: Any) -> Any:
        return serve(path, count=max(8, slots.count if slots else 0), nbytes=16 << 10, **options)

    return served


@pytest.fixture(autouse=True)
def by_far_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    class SlotClient(AsyncClient):
        connect = functools.partial(AsyncClient.connect, transport="slots")

    monkeypatch.setattr(of_sync, "Client", functools.partial(Client, transport="slots"))
    monkeypatch.setattr(of_async, "AsyncClient", SlotClient)
    for tests in (of_sync, of_service):
        monkeypatch.setattr(tests, "serving_in_a_thread", _lent(serving_far_in_a_thread))
    monkeypatch.setattr(of_async, "serving", _lent(serving_far))
