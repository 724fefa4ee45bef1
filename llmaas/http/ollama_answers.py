"""Ollama's ``/api/chat`` and ``/api/generate``: answers as lines of JSON, or whole.

Law: streamed or not, the same request has the same content. A stream's last line, and only that, is ``done``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import suppress
from datetime import datetime, timezone

import msgspec
from msgspec import UNSET

from llmaas.api.async_client import AsyncClient
from llmaas.calls import Done, Piece
from llmaas.errors import LlmaasError
from llmaas.http.answers import AnswerStream, answers, n_prompt
from llmaas.http.ask import Ask
from llmaas.http.begun import begun
from llmaas.http.call import HttpCall
from llmaas.http.deltas import CallBegin, Delta, PlainReader, Reader, TextDelta
from llmaas.http.edge import Edge, ends_with_client
from llmaas.http.extensions import with_headers
from llmaas.http.finish import finish_of
from llmaas.http.ollama_request import chat_ask_of_ollama, generate_ask_of_ollama, ollama_toolbox
from llmaas.http.ollama_types import (
    OllamaAnswer,
    OllamaCall,
    OllamaChatRequest,
    OllamaFunction,
    OllamaGenerateRequest,
    OllamaReply,
    OllamaRequest,
)
from llmaas.http.openai_types import served_of

_NOT_KEPT = (0, "0", "0s", "0m")
"""Values of ``keep_alive`` after which a model is not kept ready."""
LINES = b"application/x-ndjson"


async def ollama_chat(edge: Edge, call: HttpCall) -> None:
    request = await call.read(OllamaChatRequest)
    call.schema_field = "format"
    async with edge.daemon(call, request.model) as (client, facts), ends_with_client(call):
        toolbox = ollama_toolbox(request.tools)
        ask = chat_ask_of_ollama(request, call.headers, facts, toolbox)
        made = _OllamaAnswer(edge, call, request, toolbox.reader(), is_chat=True)
        await made.answer(client, ask if request.messages else None)


async def ollama_generate(edge: Edge, call: HttpCall) -> None:
    request = await call.read(OllamaGenerateRequest)
    call.schema_field = "format"
    async with edge.daemon(call, request.model) as (client, facts), ends_with_client(call):
        ask = generate_ask_of_ollama(request, call.headers, facts)
        made = _OllamaAnswer(edge, call, request, PlainReader(), is_chat=False)
        await made.answer(client, ask if request.prompt else None)


class _OllamaAnswer:
    """The response to one request."""

    def __init__(self, edge: Edge, call: HttpCall, request: OllamaRequest, reader: Reader, *, is_chat: bool) -> None:
        self._edge, self._call, self._request, self._reader, self._is_chat = edge, call, request, reader, is_chat
        self._began = edge.clock.now()

    async def answer(self, client: AsyncClient, ask: Ask | None) -> None:
        """``ask`` None: there is nothing to answer; a model is to be made ready, or not to be kept so."""
        if ask is None:
            await self._load(client)
            return
        async with answers(client, [ask]) as ((stream,), _):
            if self._request.stream is False:
                await self._whole(stream)
            else:
                await self._lines(stream)
            if self._request.keep_alive not in (None, *_NOT_KEPT):
                with suppress(LlmaasError):  # it was a wish
                    await client.hint((await stream.done()).context)

    async def _load(self, client: AsyncClient) -> None:
        context = with_headers(self._request.llmaas, self._call.headers).context
        if context is not None and self._request.keep_alive not in _NOT_KEPT:
            await client.hint(context)
        line = self._line([])
        line.done, line.done_reason = True, "unload" if self._request.keep_alive in _NOT_KEPT else "load"
        await self._call.reply_json(line)

    async def _whole(self, stream: AnswerStream) -> None:
        deltas: list[Delta] = []
        async for piece in stream:
            deltas += self._reader.feed(piece.text)
        done = await stream.done()
        await self._call.reply_json(self._last([*deltas, *self._reader.end()], done))

    async def _lines(self, stream: AnswerStream) -> None:
        held: list[Delta] = []  # a call is told when it is complete

        def take(piece: Piece) -> Awaitable[None] | None:
            held.extend(self._reader.feed(piece.text))
            if not held or not all(isinstance(delta, TextDelta) for delta in held):
                return None
            line = self._line(held)
            held.clear()
            return begun(self._send(line))

        await stream.pass_to(take)
        done = await stream.done()
        rest = [*held, *self._reader.end()]
        if rest:
            await self._send(self._line(rest))
        await self._send(self._last([], done))
        await self._call.end()

    async def _send(self, line: OllamaReply) -> None:
        if not self._call.started:
            await self._call.start(200, LINES)
        await self._call.write(msgspec.json.encode(line) + b"\n")

    def _line(self, deltas: Sequence[Delta]) -> OllamaReply:
        now = datetime.fromtimestamp(self._edge.clock.wall(), timezone.utc).isoformat().replace("+00:00", "Z")
        reply = OllamaReply(model=self._request.model or "", created_at=now)
        text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        if self._is_chat:
            reply.message = OllamaAnswer(text, tool_calls=_calls(deltas) or UNSET)
        else:
            reply.response = text
        return reply

    def _last(self, deltas: Sequence[Delta], done: Done) -> OllamaReply:
        line = self._line(deltas)
        line.done, line.done_reason = True, "length" if finish_of(done.reason) == "length" else "stop"
        line.total_duration = _ns((self._edge.clock.now() - self._began) * 1e3)
        line.load_duration = _ns(done.queue_ms + done.switch.switch_ms)
        line.prompt_eval_count = n_prompt(done)
        line.prompt_eval_duration = _ns(max(0.0, done.ttft_ms - done.queue_ms - done.switch.switch_ms))
        line.eval_count = done.n_generated
        line.eval_duration = _ns(1e3 * done.n_generated / done.decode_tps if done.decode_tps > 0 else 0.0)
        line.llmaas = served_of(done)
        return line


def _ns(milliseconds: float) -> int:
    return int(milliseconds * 1e6)


def _calls(deltas: Sequence[Delta]) -> list[OllamaCall]:
    """The calls; one whose arguments were cut off is left out."""
    names: dict[int, str] = {}
    texts: dict[int, str] = {}
    for delta in deltas:
        if isinstance(delta, CallBegin):
            names[delta.index] = delta.name
        elif not isinstance(delta, TextDelta):
            texts[delta.index] = texts.get(delta.index, "") + delta.text
    found = []
    for index, name in names.items():
        try:
            arguments = msgspec.json.decode(texts.get(index, ""), type=dict)
        except (msgspec.DecodeError, RecursionError):
            continue
        found.append(OllamaCall(OllamaFunction(name, arguments)))
    return found
