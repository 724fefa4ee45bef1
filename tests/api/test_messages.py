"""What the maps mean: records travel unchanged, bad requests name the field, errors keep their class."""

from __future__ import annotations

import re
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.adapter_messages import AdapterAdd, AdapterRemove, ListAdapters
from llmaas.api.app_messages import AppAdd, AppRemove, AppRotate, ListApps, SetAppQuota
from llmaas.api.embed_message import Embed
from llmaas.api.given_messages import as_messages
from llmaas.api.hello import Hello, app_id, hello_frame, read_hello
from llmaas.api.incoming import read_incoming
from llmaas.api.mark_messages import ListMarks, MarksOf
from llmaas.api.names import CONTEXTS_OF_APP, MAX_CONTEXT, MAX_MESSAGES, MAX_NAME, MAX_ROLE, MAX_STOP, MAX_STOPS
from llmaas.api.record_maps import from_map, to_map
from llmaas.api.slot_message import OpenSlot
from llmaas.api.transfer_messages import MOVE_WAYS, Export, ExportChunks, Import, ImportChunks, MoveToNode
from llmaas.api.transfer_records import ChunkPiece
from llmaas.api.wire import Decoder, Frame, encode
from llmaas.calls import Done, FinishReason, Logprobs, Piece, Queued, Sampling, SwitchReport, TokenLogprob, Turn
from llmaas.errors import BadRequest, Cancelled, LlmaasError, MalformedFrame, VersionMismatch, by_code
from llmaas.records import (
    AppId,
    AppQuota,
    ContextDetail,
    ContextId,
    ContextInfo,
    ContextSpan,
    ExportedContext,
    Message,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNT = st.integers(0, 2**40)
NUMBER = st.floats(0, 1e12)
NAME = st.text("abc Ü7._-", min_size=1, max_size=20).filter(str.isprintable)
MESSAGES = st.lists(st.builds(Message, NAME, TEXT), max_size=4).map(tuple)
SWITCHES = st.builds(SwitchReport, COUNT, COUNT, COUNT, COUNT, NUMBER)
DONES = st.builds(
    Done,
    TEXT.map(ContextId),
    st.sampled_from(FinishReason),
    COUNT,
    COUNT,
    COUNT,
    SWITCHES,
    NUMBER,
    NUMBER,
    NUMBER,
)
INFOS = st.builds(
    ContextInfo,
    TEXT.map(ContextId),
    TEXT.map(AppId),
    TEXT,
    COUNT,
    COUNT,
    NUMBER,
    NUMBER,
    st.tuples(COUNT, COUNT, COUNT, COUNT),
    st.booleans(),
    TEXT,
    TEXT,
)
DETAILS = st.builds(ContextDetail, INFOS, MESSAGES)
MAYBE_TEXT = st.none() | TEXT
TURNS = (
    MESSAGES.map(lambda m: {"messages": m})
    | MAYBE_TEXT.map(lambda p: {"prompt": p})
    | TEXT.map(lambda p: {"prompt": p, "special": False})
)
RATES = st.none() | st.floats(1e-3, 1e9)
TERMS = {"priority": st.integers(0, 9), "deadline_s": RATES, "rate": RATES, "adapter": MAYBE_TEXT}
GENERATES = st.builds(
    lambda turn, **rest: msg.Generate("c", **turn, **rest),
    TURNS,
    max_tokens=st.integers(1, 2**31 - 1),
    temperature=st.floats(0, 10),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    seed=st.none() | st.integers(0, 2**32 - 1),
    stop=st.lists(TEXT.filter(bool), max_size=MAX_STOPS).map(tuple),
    repeat_penalty=st.floats(0.01, 10),
    presence_penalty=st.floats(-10, 10),
    frequency_penalty=st.floats(-10, 10),
    penalty_last_n=st.integers(0, 4096),
    grammar=st.none() | TEXT.filter(bool),
    logprobs=st.none() | st.integers(0, 20),
    on_full=st.sampled_from(["error", "shift"]),
    **TERMS,
)
LIMIT = st.none() | st.integers(0, 2**62)
QUOTAS = st.builds(AppQuota, LIMIT, LIMIT, LIMIT, LIMIT, RATES, st.none() | st.integers(0, 9))

SPAN = st.builds(ContextSpan, COUNT.map(lambda n: bytes(4 * (n % 9))), st.none(), MAYBE_TEXT, st.booleans())
MESSAGE_SPAN = st.builds(ContextSpan, st.just(bytes(8)), st.sampled_from(["user", "x"]), TEXT, st.booleans())
EXPORTED = st.builds(ExportedContext, NAME, TEXT, TEXT, st.lists(SPAN | MESSAGE_SPAN, max_size=4).map(tuple))

DIGEST = st.binary(min_size=16, max_size=16)
PIECE = st.builds(
    lambda index, offset, data, rest, proof: ChunkPiece(index, offset + len(data) + rest, data, offset, proof),
    COUNT,
    COUNT,
    st.binary(min_size=1, max_size=9),
    COUNT,
    st.binary(max_size=28),
)
BY_OPERATION: dict[type[msg.Request], st.SearchStrategy[msg.Request]] = {
    msg.Create: st.builds(msg.Create, st.none() | NAME, MAYBE_TEXT, TEXT),
    msg.Append: st.builds(msg.Append, TEXT, MESSAGES.filter(bool)) | st.builds(msg.Append, TEXT, prompt=TEXT, **TERMS),
    msg.Generate: GENERATES,
    msg.Fork: st.builds(msg.Fork, TEXT, st.none() | NAME, st.none() | COUNT),
    msg.Resolve: st.builds(msg.Resolve, MESSAGES, TEXT),
    msg.Truncate: st.builds(msg.Truncate, TEXT, n_tokens=COUNT) | st.builds(msg.Truncate, TEXT, n_messages=COUNT),
    msg.ListContexts: st.builds(msg.ListContexts, st.booleans()),
    msg.Show: st.builds(msg.Show, TEXT, st.booleans()),
    msg.Hint: st.builds(msg.Hint, TEXT),
    msg.Migrate: st.builds(msg.Migrate, TEXT, st.booleans()),
    Export: st.builds(Export, TEXT),
    ExportChunks: st.builds(ExportChunks, TEXT, st.lists(COUNT, max_size=4).map(tuple), COUNT, st.integers(1, 1 << 20)),
    ImportChunks: st.builds(ImportChunks, TEXT, DIGEST, DIGEST, st.lists(PIECE, max_size=3).map(tuple), st.booleans()),
    MoveToNode: st.builds(
        MoveToNode, TEXT, st.sampled_from(["desk", "a.b-c_1"]), st.none() | NAME, st.sampled_from(MOVE_WAYS)
    ),
    Import: st.builds(Import, EXPORTED, st.none() | NAME, TEXT, st.none() | st.floats(1.0, 1e9)),
    msg.Delete: st.builds(msg.Delete, TEXT, st.booleans()),
    msg.ListRequests: st.builds(msg.ListRequests, st.booleans(), last=st.none() | st.integers(1, 99)),
    msg.Cancel: st.builds(msg.Cancel, COUNT) | st.builds(msg.Cancel, call=COUNT, everyone=st.booleans()),
    msg.Prioritize: st.builds(msg.Prioritize, st.integers(0, 9), COUNT)
    | st.builds(msg.Prioritize, st.integers(0, 9), call=COUNT, everyone=st.booleans()),
    msg.Limit: st.builds(msg.Limit, MAYBE_TEXT, RATES),
    msg.Stats: st.just(msg.Stats()),
    msg.Budget: st.builds(msg.Budget, st.none() | COUNT, st.none() | COUNT),
    Embed: st.builds(Embed, st.lists(TEXT.filter(bool), min_size=1, max_size=3).map(tuple), st.booleans()),
    ListMarks: st.just(ListMarks()),
    MarksOf: st.builds(
        MarksOf, MESSAGES.filter(bool), st.lists(DIGEST, min_size=1, max_size=16).map(tuple), st.booleans()
    ),
    ListAdapters: st.just(ListAdapters()),
    AdapterAdd: st.builds(AdapterAdd, TEXT, TEXT),
    AdapterRemove: st.builds(AdapterRemove, TEXT),
    msg.Ping: st.just(msg.Ping()),
    OpenSlot: st.builds(OpenSlot, version=st.integers(0, 9)),
    ListApps: st.just(ListApps()),
    AppAdd: st.builds(AppAdd, TEXT, st.sampled_from(CONTEXTS_OF_APP), st.none() | QUOTAS),
    SetAppQuota: st.builds(SetAppQuota, TEXT, QUOTAS),
    AppRemove: st.builds(AppRemove, TEXT, st.sampled_from(CONTEXTS_OF_APP)),
    AppRotate: st.builds(AppRotate, TEXT),
}


def over_the_wire(frame: Frame) -> Frame:
    (found,) = Decoder().feed(encode(frame))
    return found


@given(DONES | SWITCHES | INFOS | DETAILS)
def test_records_travel_unchanged(record: object) -> None:
    reply = over_the_wire(replies.done_frame(3, to_map(record)))
    assert (reply["id"], reply["type"]) == (3, "done")
    assert replies.result(type(record), reply["result"]) == record


TOP = st.lists(st.builds(TokenLogprob, COUNT, TEXT, NUMBER), max_size=3).map(tuple)
LOGPROBS = st.lists(st.builds(Logprobs, COUNT, TEXT, NUMBER, TOP), max_size=3).map(tuple)


QUEUED = st.builds(Queued, COUNT, st.none() | NUMBER)


@given(TEXT, st.lists(st.integers(0, 2**31), max_size=4), st.none() | LOGPROBS, st.none() | QUEUED)
def test_pieces_travel_unchanged(
    text: str, tokens: list[int], logprobs: tuple[Logprobs, ...] | None, queued: Queued | None
) -> None:
    piece = Piece(text, tuple(tokens), logprobs, queued=queued)
    assert replies.piece(over_the_wire(replies.piece_frame(3, piece))) == piece


@pytest.mark.parametrize("op", msg.OPERATIONS)
@given(st.data(), st.integers(0, 2**63 - 1))
@settings(max_examples=30)
def test_requests_travel_unchanged(op: str, data: st.DataObject, request_id: int) -> None:
    request = data.draw(BY_OPERATION[msg.OPERATIONS[op]])
    frame = over_the_wire(msg.request_frame(request_id, request))
    assert (frame["op"], msg.request_id(frame)) == (op, request_id)
    assert msg.request(frame) == request


@pytest.mark.parametrize("code", sorted(by_code()))
def test_every_error_arrives_as_its_class_with_message_and_hint(code: str) -> None:
    sent = by_code()[code]("what happened", hint="what to do")
    got = replies.error_from(over_the_wire(replies.failed_frame(3, sent)))
    assert isinstance(got, by_code()[code])
    assert (got.code, got.message, got.hint, got.fault, got.retryable) == (
        code,
        "what happened",
        "what to do",
        sent.fault,
        sent.retryable,
    )


def test_a_bad_request_can_be_caught_as_bad_request() -> None:
    assert type(replies.error_from(replies.error_map(BadRequest("no")))) is BadRequest


def test_cancelled_says_how_many_tokens_stayed() -> None:
    got = replies.error_from(over_the_wire(replies.failed_frame(3, Cancelled("stop", n_generated=17))))
    assert isinstance(got, Cancelled)
    assert got.n_generated == 17


@pytest.mark.parametrize("code", sorted(by_code()))
def test_every_error_says_what_was_kept_if_something_was(code: str) -> None:
    sent = by_code()[code]("what happened", n_generated=17, n_tokens=40)
    frame = over_the_wire(replies.failed_frame(3, sent))
    got = replies.error_from(frame)
    assert (got.n_generated, got.n_tokens) == (frame["n_generated"], frame["n_tokens"]) == (17, 40)
    nothing = replies.error_map(by_code()[code]("what happened"))
    assert "n_tokens" not in nothing and ("n_generated" in nothing) == (code in ("cancelled", "expired"))


def test_an_unknown_code_is_shown() -> None:
    got = replies.error_from({"code": "moon_phase", "message": "not tonight", "hint": "wait"})
    assert type(got) is LlmaasError
    assert "not tonight" in got.message
    assert "moon_phase" in got.message
    assert got.hint == "wait"


def test_a_message_that_quotes_too_much_is_cut() -> None:
    told = over_the_wire(replies.failed_frame(1, BadRequest("x" * 10**6 + "\ud800")))
    assert len(told["message"]) == replies.MAX_MESSAGE
    assert over_the_wire(replies.failed_frame(1, BadRequest("bad \ud800")))["message"] == "bad ?"


@pytest.mark.parametrize(
    ("frame", "names"),
    [
        ({}, "'op'"),
        ({"op": "fly"}, "'fly'"),
        ({"op": ["create"]}, "'op'"),
        ({"op": "hello", "version": 1, "app": "mail"}, "'hello'"),
        ({"op": "create", "colour": 1}, "'colour'"),
        ({"op": "create", "name": 1}, "'name' must be a string, not int"),
        ({"op": "create", "name": b"x"}, "'name' must be a string, not bytes"),
        ({"op": "fork"}, "'context' is missing"),
        ({"op": "create", "name": ""}, "'name': 1 to 128"),
        ({"op": "create", "name": "x" * (MAX_NAME + 1)}, "'name': 1 to 128"),
        ({"op": "create", "name": "a\nb"}, "'name': 1 to 128 printable"),
        ({"op": "fork", "context": "c", "name": "\x1b[2J"}, "'name': 1 to 128 printable"),
        *(
            ({"op": op, "context": "x" * (MAX_CONTEXT + 1), **rest}, "'context': at most 256")
            for op, rest in [
                ("append", {"prompt": "x"}),
                ("truncate", {"n_tokens": 1}),
                *((op, {}) for op in ("generate", "fork", "show", "hint", "delete")),
            ]
        ),
        *(
            ({"op": op, "context": "c", "messages": messages}, says)
            for op in ("append", "generate")
            for messages, says in [
                ([{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1), "at most 4096 messages"),
                ([{"role": "x" * (MAX_ROLE + 1), "content": "x"}], "a role has 1 to 64"),
                ([{"role": "", "content": "x"}], "a role has 1 to 64"),
            ]
        ),
        ({"op": "generate", "context": "c", "stop": ["x" * (MAX_STOP + 1)]}, "1024 characters at most"),
        ({"op": "append", "context": "c"}, "messages or a prompt"),
        ({"op": "append", "context": "c", "messages": [], "prompt": None}, "messages or a prompt"),
        ({"op": "append", "context": "c", "messages": [{"role": "user", "content": "x"}], "prompt": "y"}, "not both"),
        ({"op": "append", "context": "c", "messages": "hi"}, "'messages' must be a list"),
        ({"op": "append", "context": "c", "messages": ["hi"]}, r"'messages\[0\]' must be a map"),
        ({"op": "append", "context": "c", "messages": [{"role": "user"}]}, r"'messages\[0\].content' is missing"),
        (
            {"op": "append", "context": "c", "messages": [{"role": "u", "content": "", "x": 1}]},
            r"'messages\[0\].x'",
        ),
        ({"op": "append", "context": "c", "prompt": "x", "max_tokens": 3}, "'max_tokens'"),
        ({"op": "generate", "context": "c", "max_tokens": 0}, "max_tokens"),
        ({"op": "generate", "context": "c", "max_tokens": True}, "'max_tokens' must be an integer, not bool"),
        ({"op": "generate", "context": "c", "max_tokens": 2.0}, "'max_tokens' must be an integer"),
        ({"op": "generate", "context": "c", "max_tokens": 2**31}, "max_tokens"),
        ({"op": "generate", "context": "c", "temperature": "hot"}, "'temperature' must be a number"),
        ({"op": "generate", "context": "c", "temperature": -1}, "temperature"),
        ({"op": "generate", "context": "c", "temperature": float("nan")}, "temperature"),
        ({"op": "generate", "context": "c", "top_p": 0}, "top_p"),
        ({"op": "generate", "context": "c", "top_k": -1}, "top_k"),
        ({"op": "generate", "context": "c", "min_p": 2}, "min_p"),
        ({"op": "generate", "context": "c", "seed": -1}, "seed"),
        ({"op": "generate", "context": "c", "seed": 2**32}, "seed"),
        ({"op": "generate", "context": "c", "stop": "."}, "'stop' must be a list"),
        ({"op": "generate", "context": "c", "stop": [""]}, "stop"),
        ({"op": "generate", "context": "c", "stop": ["."] * 17}, "stop"),
        ({"op": "generate", "context": "c", "repeat_penalty": 0.0}, "repeat_penalty"),
        ({"op": "generate", "context": "c", "presence_penalty": 11}, "presence_penalty"),
        ({"op": "generate", "context": "c", "frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"op": "generate", "context": "c", "penalty_last_n": -1}, "penalty_last_n"),
        ({"op": "generate", "context": "c", "logprobs": 21}, "logprobs"),
        ({"op": "generate", "context": "c", "on_full": "cry"}, "on_full"),
        ({"op": "generate", "context": "c", "grammar": "x", "json_schema": "{}"}, "not both"),
        ({"op": "truncate", "context": "c"}, "n_tokens or n_messages"),
        ({"op": "truncate", "context": "c", "n_tokens": 1, "n_messages": 1}, "n_tokens or n_messages"),
        ({"op": "truncate", "context": "c", "n_tokens": -1}, "n_tokens"),
        ({"op": "list", "everyone": 1}, "'everyone' must be true or false"),
        ({"op": "cancel"}, "request or call"),
        ({"op": "prioritize", "request": 1}, "'priority' is missing"),
        ({"op": "ping", "x": 1}, "'x'"),
    ],
)
def test_a_bad_request_names_what_is_wrong(frame: Frame, names: str) -> None:
    with pytest.raises(BadRequest, match=names):
        msg.request({"id": 1, **frame})


@pytest.mark.parametrize("value", [None, -1, 2**63, True, 1.0, "1", [1]])
def test_an_id_that_replies_could_not_carry_is_refused(value: object) -> None:
    with pytest.raises(BadRequest, match="'id'"):
        msg.request_id({"op": "ping", "id": value})


def test_defaults_of_generate_are_those_of_the_records() -> None:
    got = msg.request({"op": "generate", "context": "c", "id": 1})
    assert isinstance(got, msg.Generate)
    assert got.turn == Turn()
    assert got.generation.sampling == Sampling()


@pytest.mark.parametrize("name", ["", "a" * 65, "a/b", "ä", "a b", "a\n", "\x00"])
def test_an_app_name_has_1_to_64_plain_characters(name: str) -> None:
    with pytest.raises(BadRequest, match="'app'"):
        app_id(1000, name)


def test_an_app_is_its_uid_and_its_name() -> None:
    assert app_id(1000, "org.mail_2-x") == "1000/org.mail_2-x"
    assert app_id(0, "a" * 64) == "0/" + "a" * 64


def test_the_version_is_looked_at_before_all_other_fields() -> None:
    with pytest.raises(VersionMismatch, match=r"version 2.*version 1"):
        read_hello({"op": "hello", "version": 2, "application": 5})
    for bad in ({"op": "ping", "version": 2}, {"op": "hello", "app": "mail"}, {"op": "hello", "version": "1"}):
        with pytest.raises(BadRequest):
            read_hello(bad)
    assert read_hello(hello_frame("mail", "me")) == Hello(1, "mail", "me")


def test_a_reply_may_hold_more_than_this_version_knows_and_never_less() -> None:
    info = ContextInfo(ContextId("c"), AppId("1/a"), "n", 1, 1, 1.0, 2.0)
    assert replies.result(ContextInfo, {**to_map(info), "mood": "good"}) == info
    for bad in ({"id": "c"}, None, [], {**to_map(info), "tiers": [1, 2]}, {**to_map(info), "usable": 1}):
        with pytest.raises(MalformedFrame):
            replies.result(ContextInfo, bad)


def test_an_enum_value_out_of_range_is_refused_with_the_known_ones() -> None:
    done = Done(ContextId("c"), FinishReason.STOP, 1, 1, 1, SwitchReport(), 1.0, 1.0, 1.0)
    with pytest.raises(BadRequest, match=r"reason.*stop.*tired"):
        from_map(Done, {**to_map(done), "reason": "tired"})


def test_messages_may_be_given_as_maps() -> None:
    given_ = [Message("user", "a"), {"role": "user", "content": "b"}]
    assert as_messages(given_) == (Message("user", "a"), Message("user", "b"))
    assert as_messages("hi") == (Message("user", "hi"),)
    bad_ones: list[Any] = [[{"role": "user"}], [5], ["hi"]]
    for bad in bad_ones:
        with pytest.raises(BadRequest, match="messages"):
            as_messages(bad)


@pytest.mark.parametrize(
    ("op", "field", "most"), [("append", "messages", 4096), ("generate", "stop", 16), ("generate", "logit_bias", 300)]
)
def test_a_list_that_is_too_long_is_refused_before_it_is_read(op: str, field: str, most: int) -> None:
    for n, wanted in ((most + 1, f"{most} .*, not {most + 1}$"), (most, "must be")):
        found = read_incoming(msgpack.packb({"id": 1, "op": op, "context": "c", field: [None] * n}))
        assert found.request_id == 1
        assert isinstance(found.request, BadRequest) and re.search(wanted, found.request.message)
