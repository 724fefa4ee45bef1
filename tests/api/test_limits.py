"""Connections fit the files that the process may have open."""

from __future__ import annotations

import pytest

from llmaas.api.limits import FEWEST_CONNECTIONS, OPERATOR_CONNECTIONS, OWN_FILES, Limits
from llmaas.errors import ConfigError

OTHERS = OWN_FILES + 2 * OPERATOR_CONNECTIONS


def test_all_connections_fit_where_there_is_room() -> None:
    assert Limits().within(4096) == Limits()
    assert Limits().within(OTHERS + 256 + 64) == Limits()


@pytest.mark.parametrize("room", [FEWEST_CONNECTIONS, 40, 100, 319])
def test_fewer_connections_where_there_is_little(room: int) -> None:
    limits = Limits().within(OTHERS + room)
    assert limits.max_connections + limits.waiting_connections <= room
    assert limits.max_connections >= 12 and limits.waiting_connections >= 4
    assert 1 <= limits.app_connections <= limits.max_connections // 4 + 1, "one app does not take all"
    operator = limits.for_operator()
    assert operator.max_connections + operator.waiting_connections <= 2 * OPERATOR_CONNECTIONS


def test_too_few_to_serve_anybody_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="127 files open, and needs 128") as caught:
        Limits().within(OTHERS + FEWEST_CONNECTIONS - 1)
    assert "LimitNOFILE" in caught.value.hint
