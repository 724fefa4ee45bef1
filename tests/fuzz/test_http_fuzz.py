"""Bodies of any kind: each gets one reply, in the shape of its API, and never a fault of the server's own."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.frames import BODIES
from tests.fuzz.responses import check_response
from tests.support.http_edge import http_edge

SCALARS: Any = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(
        ["user", "system", "tool", "auto", "required", "none", "json_object", "function", "x" * 300, "\0"]
    )
)
VALUES: Any = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def altered(fine: dict[str, Any], data: st.DataObject) -> Any:
    """A request in which some values, at any depth, are others."""
    body = json.loads(json.dumps(fine))
    for _ in range(data.draw(st.integers(1, 3))):
        place = body
        while True:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(VALUES)
            break
    return body


@pytest.mark.parametrize("parser", ["json", "bytes"])
def test_every_body_gets_one_reply_in_the_right_shape(
    parser: str, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.new_event_loop()
    server = http_edge(tmp_path_factory.mktemp("edge"))
    edge = loop.run_until_complete(server.__aenter__())
    client = edge.http()
    http = loop.run_until_complete(client.__aenter__())

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(BODIES)))
        if parser == "json":
            content = json.dumps(altered(BODIES[path], data)).encode("utf-8", "surrogatepass")
        else:
            whole = json.dumps(BODIES[path]).encode()
            cut, more = data.draw(st.integers(0, len(whole))), data.draw(st.binary(max_size=20))
            content = data.draw(st.sampled_from([more, whole[:cut] + more + whole[cut:], whole[:cut], b"[" * 5000]))
        reply = loop.run_until_complete(http.post(path, content=content))
        check_response(path, reply.status_code, reply.headers["content-type"], reply.content)

    try:
        with caplog.at_level(logging.ERROR):
            ask()
        assert "Traceback" not in caplog.text
    finally:
        loop.run_until_complete(client.__aexit__(None, None, None))
        loop.run_until_complete(server.__aexit__(None, None, None))
        loop.close()
