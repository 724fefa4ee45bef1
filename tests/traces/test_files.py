from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmaas.errors import BadRequest
from llmaas.traces.call import TraceCall, read_trace
from llmaas.traces.files import load, save

CALLS = [
    TraceCall(0.0, "mail", "a", 10, 2, text="Grüße", prefix="p", prefix_tokens=4),
    TraceCall(0.5, "mail", "b", 0, 1, priority=0, deadline_s=2.0, rate=5.0),
]
needs_zstandard = pytest.mark.skipif(find_spec("zstandard") is None, reason="the extra traces is not installed")


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", pytest.param(".jsonl.zst", marks=needs_zstandard)])
def test_a_trace_comes_back_as_it_was_written(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"trace{ending}"
    assert save(path, CALLS, ["how it was made"]) == 2
    assert load(path) == CALLS


def test_a_line_has_only_what_is_not_so_by_itself() -> None:
    line = TraceCall(1.0, "mail", "a", 10, 2).line()
    assert json.loads(line) == {"t": 1.0, "app": "mail", "context": "a", "prompt": 10, "generate": 2}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.jsonl", None),
        ("t.gz", b"plain text"),
        ("t.gz", b"\x1f\x8b\x08\x00cut"),
        ("t.jsonl", b"\xff\xfe"),
        pytest.param("t.zst", b"plain text", marks=needs_zstandard),
    ],
)
def test_a_file_that_is_no_trace_is_refused(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadRequest, match="cannot read"):
        load(tmp_path / name)


def test_without_its_package_a_zstd_file_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(BadRequest) as refused:
        save(tmp_path / "t.zst", CALLS)
    assert "llmaas[traces]" in refused.value.hint


def test_calls_that_go_back_in_time_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "t", reversed(CALLS))
    with pytest.raises(BadRequest, match="call 2 comes at 0 s"):
        load(tmp_path / "t")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": 0, "generate": 0},
        {"prompt": -1},
        {"prefix": "p"},
        {"prefix": "p", "prefix_tokens": 11},
        {"prefix_tokens": 3},
        {"priority": 10},
        {"t": None},
        {"t": -1},
        {"t": float("nan")},
        {"prompt": 1.5},
        {"app": 5},
        {"text": ["a"]},
        {"colour": "red"},
    ],
)
def test_a_wrong_line_is_refused_by_its_number(fields: dict[str, object]) -> None:
    line = json.dumps({"t": 0, "app": "a", "context": "c", "prompt": 10, "generate": 1} | fields)
    with pytest.raises(BadRequest, match="trace line 3"):
        list(read_trace(["# a comment", "", line]))
