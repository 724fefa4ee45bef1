"""Frames that say how long a model will take to load: before the hello reply, and while calls run."""

from __future__ import annotations

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.api.client_session import Session
from llmaas.api.hello import read_hello, reply_frame
from llmaas.api.wire import Decoder, encode
from llmaas.calls import Loading, Piece

SOON, UNKNOWN = Loading("coder", 1.5), Loading("coder", None)


def loading(what: Loading) -> bytes:
    return encode(replies.loading_frame(what))


def test_a_client_that_waits_is_told_and_the_hello_still_comes() -> None:
    told: list[Loading] = []
    session = Session("app", model="coder", on_loading=told.append)
    session.receive(loading(UNKNOWN) + loading(SOON))
    assert told == [UNKNOWN, SOON] and not session.greeting.ended
    session.receive(encode(reply_frame("llmaas", {}, {})))
    assert session.greeting.ended and session.fault is None


def test_calls_that_ask_for_progress_get_pieces_of_it_and_others_none() -> None:
    session = Session("app", model="coder")
    session.receive(encode(reply_frame("llmaas", {}, {})))
    asks, _ = session.start(msg.Generate("c", prompt="x", progress=True))
    plain, _ = session.start(msg.Generate("c", prompt="x"))
    session.receive(loading(SOON))
    assert list(asks.pieces) == [Piece("", (), loading=SOON)] and not plain.pieces
    assert asks.text == "" and session.fault is None


def test_only_who_names_a_model_or_listens_says_so_since_older_daemons_know_no_such_field() -> None:
    def said(session: Session) -> bool | None:
        (frame,) = Decoder().feed(session.hello())
        return read_hello(frame).told_of_loading

    assert said(Session("app")) is None
    assert said(Session("app", model="coder")) is True
    assert said(Session("app", on_loading=lambda loading: None)) is True
