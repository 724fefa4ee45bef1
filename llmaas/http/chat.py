"""``/v1/chat/completions``: answers to a conversation, whole or as a stream of events.

Law: streamed or not, the same request has the same content.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from msgspec import UNSET, UnsetType

from llmaas.calls import Done, Logprobs, Piece
from llmaas.http.answers import AnswerStream, answers
from llmaas.http.call import HttpCall
from llmaas.http.chat_request import chat_ask, n_answers, toolbox_of
from llmaas.http.chat_types import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatRequest,
    ChunkChoice,
    FunctionDelta,
    ToolCallDelta,
)
from llmaas.http.deltas import CallBegin, Delta, Reader, TextDelta
from llmaas.http.edge import Edge, ends_with_client
from llmaas.http.finish import finish_of, logprobs_of
from llmaas.http.openai_types import Before, CalledFunction, InQueue, Reading, ToolCall, Waiting, served_of, usage_of
from llmaas.http.side_by_side import side_by_side
from llmaas.http.sse import EventStream

_Send = Callable[..., Awaitable[None] | None]
"""Sends parts of an answer, each as an event."""


async def chat_completions(edge: Edge, call: HttpCall) -> None:
    request = await call.read(ChatRequest)
    async with edge.daemon(call, request.model) as (client, facts), ends_with_client(call):
        toolbox, n = toolbox_of(request), n_answers(request.n)
        ask = chat_ask(request, call.headers, facts, toolbox)
        call.schema_field = "tools" if toolbox.constraint() else "response_format"
        made = _ChatAnswer(call, edge.now(), request.model or facts.id, toolbox.reader)
        async with answers(client, [ask] * n) as (streams, _):
            if request.stream:
                usage = bool(request.stream_options and request.stream_options.include_usage)
                await made.stream(streams, usage)
            else:
                await made.whole(streams, ask.logprobs is not None)


class _ChatAnswer:
    """The response to one request."""

    def __init__(self, call: HttpCall, created: int, model: str, reader: Callable[[], Reader]) -> None:
        self._call, self._created, self._model, self._reader = call, created, model, reader
        self._id = f"chatcmpl-{secrets.token_hex(12)}"

    # -- whole

    async def whole(self, streams: list[AnswerStream], with_logprobs: bool) -> None:
        found = await side_by_side([self._collect(i, s, with_logprobs) for i, s in enumerate(streams)])
        done = [each for _, each in found]
        choices = [choice for choice, _ in found]
        served, usage = served_of(done[0]), usage_of(done)
        await self._call.reply_json(ChatCompletion(self._id, self._created, self._model, choices, usage, llmaas=served))

    async def _collect(self, index: int, stream: AnswerStream, with_logprobs: bool) -> tuple[ChatChoice, Done]:
        reader = self._reader()
        logprobs: list[Logprobs] = []
        deltas: list[Delta] = []
        async for piece in stream:
            deltas += reader.feed(piece.text)
            logprobs += piece.logprobs or ()
        done = await stream.done()
        message = answer_message([*deltas, *reader.end()])
        found = logprobs_of(logprobs) if with_logprobs else None
        return ChatChoice(index, message, found, finish_of(done.reason, reader.n_calls)), done

    # -- streamed

    async def stream(self, streams: list[AnswerStream], with_usage: bool) -> None:
        usage = None if with_usage else UNSET
        async with EventStream(self._call) as events:

            def send(*parts: ChunkChoice | Before) -> Awaitable[None] | None:
                return events.send_now([self._chunk(part, usage) for part in parts])

            done = await side_by_side([self._pass_on(i, s, send) for i, s in enumerate(streams)])
            served = served_of(done[0])
            if with_usage:
                last = ChatChunk(self._id, self._created, self._model, [], usage=usage_of(done), llmaas=served)
                await events.send(last)
            await events.send_text(b"[DONE]")

    def _chunk(self, part: ChunkChoice | Before, usage: UnsetType | None) -> ChatChunk:
        choices, reading = ([], part) if isinstance(part, Before) else ([part], UNSET)
        return ChatChunk(self._id, self._created, self._model, choices, usage=usage, llmaas=reading)

    async def _pass_on(self, index: int, stream: AnswerStream, send: _Send) -> Done:
        reader = self._reader()
        begin = [ChunkChoice(index, ChatDelta(role="assistant", content=""))]

        def take(piece: Piece) -> Awaitable[None] | None:
            if piece.loading is not None:
                return send(Waiting(piece.loading))
            if piece.queued is not None:
                return send(InQueue(piece.queued))
            if piece.progress is not None:
                return send(Reading(piece.progress))
            found = logprobs_of(piece.logprobs) if piece.logprobs else None
            delta = chat_delta(reader.feed(piece.text))
            new = [] if delta is None and found is None else [ChunkChoice(index, delta or ChatDelta(content=""), found)]
            parts = [*begin, *new]
            begin.clear()
            return send(*parts) if parts else None

        await stream.pass_to(take)
        done = await stream.done()
        rest = chat_delta(reader.end())
        parts = [*begin, *([] if rest is None else [ChunkChoice(index, rest)])]
        last = ChunkChoice(index, ChatDelta(), finish_reason=finish_of(done.reason, reader.n_calls))
        if (waits := send(*parts, last)) is not None:
            await waits
        return done


def chat_delta(deltas: list[Delta]) -> ChatDelta | None:
    """What a chunk holds of an answer; None if that is nothing."""
    if not deltas:
        return None
    texts, calls = [], []
    for delta in deltas:
        if isinstance(delta, TextDelta):
            texts.append(delta.text)
        elif isinstance(delta, CallBegin):
            function = FunctionDelta(name=delta.name, arguments="")
            calls.append(ToolCallDelta(delta.index, function, id=delta.id, type="function"))
        else:
            calls.append(ToolCallDelta(delta.index, FunctionDelta(arguments=delta.text)))
    return ChatDelta(content="".join(texts) if texts else UNSET, tool_calls=calls or UNSET)


def answer_message(deltas: list[Delta]) -> AnswerMessage:
    """The message that an answer is."""
    texts: list[str] = []
    calls: dict[int, ToolCall] = {}
    for delta in deltas:
        if isinstance(delta, TextDelta):
            texts.append(delta.text)
        elif isinstance(delta, CallBegin):
            calls[delta.index] = ToolCall(delta.id, CalledFunction(delta.name, ""))
        else:
            calls[delta.index].function.arguments += delta.text
    text = "".join(texts)
    return AnswerMessage(None if calls and not text.strip() else text, tool_calls=list(calls.values()) or UNSET)
