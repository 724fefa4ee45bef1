"""docs/protocol.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.hello import Hello, read_hello
from llmaas.api.wire import encode
from llmaas.calls import Done
from llmaas.errors import by_code
from llmaas.records import ContextInfo

DOC = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("op", ["hello", *msg.OPERATIONS])
def test_the_document_describes_every_operation_with_its_fields(op: str) -> None:
    cls = msg.OPERATIONS.get(op, Hello)
    section = re.search(rf"^### `{op}`$(.*?)^##", DOC, re.MULTILINE | re.DOTALL)
    assert section, f"no section for {op}"
    for name in cls.__dataclass_fields__:
        assert f"`{name}`" in section[1], f"{op} lacks {name}"


def codes() -> list[str]:
    """Those that a daemon may send: not those of the machine around it, which only its commands tell."""
    return sorted(code for code, cls in by_code().items() if not cls.__module__.startswith("llmaas.vm."))


@pytest.mark.parametrize("code", codes())
def test_the_document_lists_every_error_code_with_its_fault(code: str) -> None:
    cls = by_code()[code]
    assert f"| `{code}` | {cls.fault.value} | {'yes' if cls.retryable else 'no'} |" in DOC


def test_the_example_session_in_the_document_is_valid() -> None:
    frames = re.findall(r"^([CS]): (\{.*(?:\n {4}.*)*\})$", DOC, re.MULTILINE)
    assert len(frames) > 8
    said = [(who, json.loads(text)) for who, text in frames]
    for who, frame in said:
        if who == "C" and frame["op"] == "hello":
            read_hello(frame)
        elif who == "C":
            msg.request_id(frame)
            msg.request(frame)
        elif frame["type"] == "piece":
            replies.piece(frame)
        elif frame["type"] == "failed":
            assert replies.error_from(frame).code == frame["code"]
    ops = {frame["id"]: frame["op"] for who, frame in said if who == "C" and "id" in frame}
    records = {"create": ContextInfo, "generate": Done}
    results = [(ops[frame["id"]], frame["result"]) for who, frame in said if who == "S" and frame["type"] == "done"]
    assert {op for op, result in results if op in records and replies.result(records[op], result)} == set(records)
    asked = [frame["id"] for who, frame in said if who == "C" and "id" in frame]
    ended = [frame["id"] for who, frame in said if who == "S" and frame["type"] in ("done", "failed")]
    assert sorted(asked) == sorted(ended), "every request in the example has one terminal reply"


def test_the_bytes_in_the_document_are_those_of_the_frame() -> None:
    block = re.search(r"^The frame of request 3, in bytes:\n\n```\n(.*?)```", DOC, re.MULTILINE | re.DOTALL)
    assert block
    shown = bytes.fromhex("".join(line[:27] for line in block[1].splitlines()))
    assert shown == encode(msg.request_frame(3, msg.Ping()))
