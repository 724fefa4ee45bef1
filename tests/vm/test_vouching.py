"""Who the host says a client is: nothing that a client sends makes it another user's app, or the operator."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from llmaas.api.caller import Caller, Door, caller_of
from llmaas.api.hello import read_hello
from llmaas.api.wire import read_body
from llmaas.errors import BadRequest, Forbidden, LlmaasError, MalformedFrame, VersionMismatch
from llmaas.records import AppId
from llmaas.vm.vouching import vouched
from tests.support.scripted import ScriptedApps

OWNER, OTHER = 1000, 2000


def hello(**fields: Any) -> bytes:
    body: bytes = msgpack.packb({"op": "hello", "version": 1, "app": "mail"} | fields)
    return body


def in_the_guest(body: bytes, door: Door, uid: int) -> Caller:
    """Whom the guest's daemon, which root runs, takes the client for."""
    to, frame = vouched(body, door, uid, OWNER)
    said = read_hello(read_body(frame[4:]))
    return caller_of(0, said.app, to, tokens=ScriptedApps(), token=said.token, on_behalf_of=said.uid)


@pytest.mark.parametrize("uid", [0, OWNER, OTHER])
def test_an_app_is_that_of_the_user_whom_the_kernel_names(uid: int) -> None:
    caller = in_the_guest(hello(), Door.APPS, uid)
    assert caller.app == AppId(f"{uid}/mail") and not caller.is_operator


@pytest.mark.parametrize("uid", [0, OWNER])
def test_the_owner_and_root_are_the_operator_on_the_admin_socket(uid: int) -> None:
    assert in_the_guest(hello(), Door.ADMIN, uid).is_operator


def test_another_user_is_no_operator_even_there() -> None:
    caller = in_the_guest(hello(), Door.ADMIN, OTHER)
    assert caller.app == AppId(f"{OTHER}/mail") and not caller.is_operator


def test_the_operator_may_act_on_behalf_of_others() -> None:
    caller = in_the_guest(hello(uid=OTHER), Door.ADMIN, OWNER)
    assert caller.app == AppId(f"{OTHER}/mail") and not caller.is_operator


@pytest.mark.parametrize(("door", "uid"), [(Door.APPS, OWNER), (Door.APPS, 0), (Door.ADMIN, OTHER)])
@pytest.mark.parametrize("claimed", [0, OWNER, OTHER])
def test_nobody_else_may_say_a_user(door: Door, uid: int, claimed: int) -> None:
    for more in ({}, {"token": "t" * 43}):
        with pytest.raises(Forbidden):
            vouched(hello(uid=claimed, **more), door, uid, OWNER)


def test_a_token_goes_where_it_is_all_that_counts() -> None:
    """On behalf of a user it would have to be that user's; without, it makes its app of whoever has it."""
    for door in Door:
        to, frame = vouched(hello(token="t" * 43), door, OTHER, OWNER)
        said = read_body(frame[4:])
        assert to is Door.APPS and said["token"] == "t" * 43 and "uid" not in said


def test_the_rest_of_the_hello_is_as_it_was() -> None:
    _, frame = vouched(hello(client="x/1", model="small", told_of_loading=True), Door.APPS, OTHER, OWNER)
    said = read_body(frame[4:])
    expected = {"op": "hello", "version": 1, "app": "mail", "client": "x/1", "model": "small"}
    assert said == {**expected, "uid": OTHER, "told_of_loading": True}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", MalformedFrame),
        (b"\xc1", MalformedFrame),
        (msgpack.packb({"op": "generate", "id": 1}), BadRequest),
        (msgpack.packb({"op": "models"}), BadRequest),
        (hello(version=2), VersionMismatch),
        (hello(root=True), BadRequest),
        (hello(uid="0"), BadRequest),
        (hello(client="x" * 300), BadRequest),
        (b"\x83" + msgpack.packb("op") + msgpack.packb("hello") * 5, LlmaasError),
    ],
)
def test_what_is_no_hello_does_not_reach_the_guest(body: bytes, error: type[LlmaasError]) -> None:
    for door in Door:
        with pytest.raises(error):
            vouched(body, door, OWNER, OWNER)


def test_a_field_that_is_there_twice_is_told_once() -> None:
    """Two readers of one map may differ in which of the two counts; the guest reads what the host has read."""
    pairs = [("op", "hello"), ("version", 1), ("app", "mail"), ("app", "dialer")]
    body = bytes([0x80 | len(pairs)]) + b"".join(msgpack.packb(word) for pair in pairs for word in pair)
    _, frame = vouched(body, Door.APPS, OTHER, OWNER)
    assert frame.count(b"app") == 1
