"""What every response over HTTP must be, whatever the request was."""

from __future__ import annotations

import json


def check_response(path: str, status: int, kind: str, body: bytes) -> None:
    """``kind`` is its media type. Raises AssertionError, and ValueError for what is no JSON."""
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
