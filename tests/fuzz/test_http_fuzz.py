"""Bodies of any kind: each gets one reply, in the shape of its API, and never a fault of the server's own."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.http_edge import CHAT, http_edge

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
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FINE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **CHAT, "max_tokens": 3, "stream": False, "n": 1, "stop": ["a"], "seed": 1, "top_p": 0.5, "logprobs": True,
        "top_logprobs": 2, "presence_penalty": 0, "response_format": {"type": "text"}, "tools": [TOOL],
        "tool_choice": "auto", "llmaas": {"priority": 5, "rate": 1e6, "deadline": 9}, "stream_options": {}, "user": "u",
    },
    "/v1/completions": {"model": "default", "prompt": "x", "max_tokens": 3, "echo": True, "logprobs": 1, "stop": "b"},
    "/v1/responses": {
        "model": "default", "input": [{"role": "user", "content": "x"}], "max_output_tokens": 3, "instructions": "i",
        "previous_response_id": None, "tools": [], "tool_choice": "none", "text": {"format": {"type": "text"}},
    },
    "/api/chat": {
        "model": "fake", "messages": CHAT["messages"], "stream": True, "options": {"num_predict": 3, "seed": 1},
        "format": "", "keep_alive": "5m", "tools": [TOOL],
    },
    "/api/generate": {"model": "fake", "prompt": "x", "system": "s", "raw": False, "options": {"num_predict": 3}},
    "/api/show": {"model": "fake"},
}  # fmt: skip


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


def check(path: str, status: int, kind: str, body: bytes) -> None:
    assert status == 200 or 400 <= status < 500, (status, body)
    if status != 200:
        error = json.loads(body)["error"]
        assert (
            isinstance(error, str) if path.startswith("/api/") else set(error) == {"message", "type", "param", "code"}
        )
    elif kind.startswith("application/json"):
        json.loads(body)
    elif kind.startswith("application/x-ndjson"):
        lines = [json.loads(line) for line in body.splitlines()]
        assert [line.get("done", "error" in line) for line in lines] == [False] * (len(lines) - 1) + [True]
    else:
        last = body.decode().rstrip().split("\n\n")[-1]
        assert "[DONE]" in last or '"error"' in last or "response." in last


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
        path = data.draw(st.sampled_from(sorted(FINE)))
        if parser == "json":
            content = json.dumps(altered(FINE[path], data)).encode("utf-8", "surrogatepass")
        else:
            whole = json.dumps(FINE[path]).encode()
            cut, more = data.draw(st.integers(0, len(whole))), data.draw(st.binary(max_size=20))
            content = data.draw(st.sampled_from([more, whole[:cut] + more + whole[cut:], whole[:cut], b"[" * 5000]))
        reply = loop.run_until_complete(http.post(path, content=content))
        check(path, reply.status_code, reply.headers["content-type"], reply.content)

    try:
        with caplog.at_level(logging.ERROR):
            ask()
        assert "Traceback" not in caplog.text
    finally:
        loop.run_until_complete(client.__aexit__(None, None, None))
        loop.run_until_complete(server.__aexit__(None, None, None))
        loop.close()
