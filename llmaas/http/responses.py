"""``/v1/responses``: text and calls of functions, whole or as a stream of events.

Law: streamed or not, the same request has the same content, and the last event holds the whole response.
"""

from __future__ import annotations

from typing import Any

from llmaas.calls import Done, FinishReason
from llmaas.errors import LlmaasError
from llmaas.http.answers import AnswerStream, answers, n_cached, n_prompt
from llmaas.http.call import HttpCall
from llmaas.http.deltas import Reader
from llmaas.http.edge import Edge, ends_with_client
from llmaas.http.errors import from_daemon
from llmaas.http.facts import ServedModel
from llmaas.http.openai_types import served_of
from llmaas.http.responses_items import ResponseItems
from llmaas.http.responses_past import response_id
from llmaas.http.responses_request import response_ask, response_toolbox
from llmaas.http.responses_types import (
    InputDetails,
    OutputDetails,
    ResponseObject,
    ResponseRequest,
    ResponseUsage,
)
from llmaas.http.sse import EventStream
from llmaas.http.toolbox import before_tools


async def responses(edge: Edge, call: HttpCall) -> None:
    request = await call.read(ResponseRequest)
    async with edge.daemon(call, request.model) as (client, facts), ends_with_client(call):
        toolbox = response_toolbox(request)
        call.schema_field = "tools" if toolbox.constraint() else "text.format.schema"
        past = await edge.past.of(client, request.previous_response_id)
        ask = response_ask(request, call.headers, facts, toolbox, past)
        first = ask.messages[0]
        own_system = bool(request.instructions) or (first.role == "system" and not before_tools(first))
        async with answers(client, [ask]) as ((stream,), (context,)):
            name = response_id(context, ask.messages, own_system=own_system)
            made = _ResponseAnswer(call, _described(request, name, edge.now(), facts), toolbox.reader())
            await (made.stream(stream) if request.stream else made.whole(stream))
            edge.past.remember(name, stream.text)


def _described(request: ResponseRequest, name: str, created: int, facts: ServedModel) -> ResponseObject:
    """The response before there is anything of it."""
    return ResponseObject(
        id=name,
        created_at=created,
        model=request.model or facts.id,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        previous_response_id=request.previous_response_id,
        temperature=request.temperature,
        top_p=request.top_p,
        text={"format": {"type": "text"}} if request.text is None else request.text,
        tool_choice=request.tool_choice or "auto",
        tools=list(request.tools or ()),
        truncation=request.truncation or "disabled",
    )


class _ResponseAnswer:
    """The response to one request."""

    def __init__(self, call: HttpCall, response: ResponseObject, reader: Reader) -> None:
        self._call, self._response, self._reader = call, response, reader
        self._items = ResponseItems()

    async def whole(self, stream: AnswerStream) -> None:
        async for piece in stream:
            self._items.feed(self._reader.feed(piece.text))
        done = await stream.done()
        self._items.feed(self._reader.end())
        self._items.end(complete=done.reason is FinishReason.STOP)
        self._finish(done)
        await self._call.reply_json(self._response)

    async def stream(self, stream: AnswerStream) -> None:
        number = 0
        async with EventStream(self._call) as events:

            async def send(event: dict[str, Any]) -> None:
                nonlocal number
                event["sequence_number"] = number
                number += 1
                await events.send(event, event["type"])

            pieces = stream.__aiter__()
            try:
                piece = await anext(pieces, None)  # what is refused has a status of its own
                for kind in ("response.created", "response.in_progress"):
                    await send({"type": kind, "response": self._response})
                while piece is not None:
                    for event in self._items.feed(self._reader.feed(piece.text)):
                        await send(event)
                    piece = await anext(pieces, None)
                done = await stream.done()
            except LlmaasError as error:
                if not self._call.started:
                    raise
                failure = from_daemon(error, self._call.schema_field)
                self._response.status = "failed"
                self._response.error = {"code": failure.code or "server_error", "message": failure.message}
                await send({"type": "response.failed", "response": self._response})
                return
            complete = done.reason is FinishReason.STOP
            for event in [*self._items.feed(self._reader.end()), *self._items.end(complete=complete)]:
                await send(event)
            self._finish(done)
            await send({"type": f"response.{self._response.status}", "response": self._response})

    def _finish(self, done: Done) -> None:
        response, complete = self._response, done.reason is FinishReason.STOP
        prompt = n_prompt(done)
        response.output = list(self._items.output)
        response.status = "completed" if complete else "incomplete"
        response.incomplete_details = None if complete else {"reason": "max_output_tokens"}
        response.usage = ResponseUsage(
            prompt, done.n_generated, prompt + done.n_generated, InputDetails(n_cached(done)), OutputDetails()
        )
        response.llmaas = served_of(done)
