"""``/v1/completions``: the model goes on with raw text.

Law: the prompt goes to the model as it is, without a chat template; names of control tokens in it become these tokens,
so text from elsewhere does not belong there.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from msgspec import UNSET

from llmaas.calls import MAX_LOGPROBS, Done, Logprobs, Piece
from llmaas.http.answers import AnswerStream, answers
from llmaas.http.ask import Ask, on_full_of, sampling_of, stops_of, tokens_of
from llmaas.http.call import HttpCall
from llmaas.http.chat_request import biases_of, n_answers
from llmaas.http.completions_types import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from llmaas.http.edge import Edge, ends_with_client
from llmaas.http.errors import HttpError
from llmaas.http.extensions import with_headers
from llmaas.http.facts import ServedModel
from llmaas.http.finish import finish_of, finite
from llmaas.http.openai_types import served_of, usage_of
from llmaas.http.side_by_side import side_by_side
from llmaas.http.sse import EventStream

_DEFAULT_TOKENS = 16
_MOST_PROMPTS = 16


async def completions(edge: Edge, call: HttpCall) -> None:
    request = await call.read(CompletionRequest)
    async with edge.daemon(call, request.model) as (client, facts), ends_with_client(call):
        asks = completion_asks(request, call.headers, facts)
        made = _TextAnswer(call, edge.now(), request.model or facts.id, asks, bool(request.echo))
        async with answers(client, asks) as (streams, _):
            if request.stream:
                await made.stream(streams, bool(request.stream_options and request.stream_options.include_usage))
            else:
                await made.whole(streams)


def completion_asks(request: CompletionRequest, headers: Mapping[str, str], facts: ServedModel) -> list[Ask]:
    """One for each answer: ``n`` for each prompt. Raises HttpError."""
    if request.suffix:
        what = "suffix is not supported: the model goes on at the end of the prompt. Leave it out."
        raise HttpError(400, what, param="suffix")
    n = n_answers(request.n)
    if request.best_of is not None and request.best_of != n:
        raise HttpError(400, "best_of is not supported: all n answers are returned", param="best_of")
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_LOGPROBS:
        raise HttpError(400, f"logprobs goes from 0 to {MAX_LOGPROBS}", param="logprobs")
    extra = with_headers(request.llmaas, headers)
    given = {
        name: getattr(request, name)
        for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
    }
    given["logit_bias"] = biases_of(request.logit_bias)
    shared: dict[str, Any] = {
        "context": extra.context,
        "special": True,
        "max_tokens": tokens_of(
            _DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens, facts, "max_tokens"
        ),
        "sampling": sampling_of(facts, extra, given),
        "stop": stops_of(request.stop),
        "terms": extra.terms(facts.adapter_of(request.model)),
        "logprobs": request.logprobs,
        "on_full": on_full_of(extra),
    }
    prompts = _prompts(request.prompt)
    if len(prompts) * n > _MOST_PROMPTS:
        raise HttpError(400, f"there may be {_MOST_PROMPTS} answers to one request", param="prompt")
    return [ask for prompt in prompts for ask in [Ask(prompt=prompt, **shared)] * n]


def _prompts(prompt: str | Sequence[object] | None) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
    if not prompts:
        raise HttpError(400, "a prompt is missing", param="prompt")
    texts = [each for each in prompts if isinstance(each, str)]
    if len(texts) < len(prompts):
        raise HttpError(400, "a prompt is text: token ids are not taken", param="prompt")
    if not all(texts):
        raise HttpError(400, "a prompt has one character at least", param="prompt")
    return texts


class _TextAnswer:
    """The response to one request."""

    def __init__(self, call: HttpCall, created: int, model: str, asks: list[Ask], echo: bool) -> None:
        self._call, self._created, self._model, self._asks, self._echo = call, created, model, asks, echo
        self._id = f"cmpl-{secrets.token_hex(12)}"

    async def whole(self, streams: list[AnswerStream]) -> None:
        found = await side_by_side([self._collect(i, s) for i, s in enumerate(streams)])
        done = [each for _, each in found]
        completion = self._chunk([choice for choice, _ in found])
        completion.usage, completion.llmaas = usage_of(done), served_of(done[0])
        await self._call.reply_json(completion)

    async def _collect(self, index: int, stream: AnswerStream) -> tuple[CompletionChoice, Done]:
        text = self._before(index)
        logprobs: list[Logprobs] = []
        async for piece in stream:
            text += piece.text
            logprobs += piece.logprobs or ()
        done = await stream.done()
        found = None if self._asks[index].logprobs is None else _logprobs(logprobs, len(self._before(index)))
        return CompletionChoice(index, text, found, finish_of(done.reason)), done

    async def stream(self, streams: list[AnswerStream], with_usage: bool) -> None:
        async with EventStream(self._call) as events:
            done = await side_by_side([self._pass_on(i, s, events) for i, s in enumerate(streams)])
            if with_usage:
                last = self._chunk([])
                last.usage, last.llmaas = usage_of(done), served_of(done[0])
                await events.send(last)
            await events.send_text(b"[DONE]")

    async def _pass_on(self, index: int, stream: AnswerStream, events: EventStream) -> Done:
        text = self._before(index)
        n_sent = 0

        def take(piece: Piece) -> Awaitable[None] | None:
            nonlocal text, n_sent
            found = _logprobs(piece.logprobs, n_sent + len(text)) if piece.logprobs else None
            new = text + piece.text
            n_sent, text = n_sent + len(new), ""
            return events.send_now([self._chunk([CompletionChoice(index, new, found)])]) if new or found else None

        await stream.pass_to(take)
        done = await stream.done()
        await events.send(self._chunk([CompletionChoice(index, text, finish_reason=finish_of(done.reason))]))
        return done

    def _before(self, index: int) -> str:
        return (self._asks[index].prompt or "") if self._echo else ""

    def _chunk(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(self._id, self._created, self._model, choices, usage=UNSET)


def _logprobs(found: Sequence[Logprobs], offset: int) -> CompletionLogprobs:
    offsets = []
    for each in found:
        offsets.append(offset)
        offset += len(each.text)
    return CompletionLogprobs(
        [each.text for each in found],
        [finite(each.logprob) for each in found],
        [{top.text: finite(top.logprob) for top in each.top} for each in found],
        offsets,
    )
