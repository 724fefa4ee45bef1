"""What every endpoint makes of its request: an Ask, which says what the daemon is to do.

Law: pure. Values that the daemon would refuse are refused here, with the name that the request's API has for the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmaas.calls import MAX_GRAMMAR, Sampling, Terms
from llmaas.frozen import frozen
from llmaas.http.errors import HttpError
from llmaas.http.extensions import Extensions
from llmaas.http.facts import ServedModel
from llmaas.http.toolbox import MarkedCalls
from llmaas.records import Message

MOST_ANSWERS = 16
"""Answers to one request (``n``)."""
_EXTRA = ("top_k", "min_p", "repeat_penalty", "penalty_last_n", "grammar")


@frozen(kw_only=True)
class Ask:
    """A conversation, or raw text, and how it is to be answered."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    special: bool = False
    """Whether names of control tokens in ``prompt`` become these tokens."""
    context: str | None = None
    """A context that lasts, to which the messages are added; None: they are the whole conversation."""
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    terms: Terms
    logprobs: int | None = None
    on_full: str = "error"
    calls: MarkedCalls | None = None
    """Keeps calls of tools to their schemas, where ``sampling`` has no schema and the daemon can follow these."""
    progress: bool = False
    """Tell how far reading the prompt has come."""

    @property
    def kept(self) -> Sampling | None:
        """How the answer is drawn if its calls are kept to their schemas; None if they are not."""
        if self.calls is None or self.sampling.constrained:
            return None
        if len(self.calls.schema.encode()) > MAX_GRAMMAR:
            return None
        return replace(self.sampling, json_schema=self.calls.schema, schema_marks=self.calls.marks)

    def call(self, sampling: Sampling) -> dict[str, Any]:
        """The arguments of the client's ``generate`` besides what is added to the context."""
        return {
            "max_tokens": self.max_tokens,
            "sampling": sampling,
            "stop": self.stop,
            "terms": self.terms,
            "logprobs": self.logprobs,
            "on_full": self.on_full,
            "progress": self.progress,
        }


def sampling_of(
    facts: ServedModel,
    extra: Extensions,
    given: Mapping[str, Any],
    *,
    prefix: str = "",
    names: Mapping[str, str] | None = None,
) -> Sampling:
    """How the answer is drawn: what the request gives (None: nothing), else what suits the model. ``names`` maps our
    names to those of the request's API, ``prefix`` stands before them. Raises HttpError."""
    more = {name: getattr(extra, name) for name in _EXTRA}
    wanted = {name: value for name, value in [*more.items(), *given.items()] if value is not None}
    fields: dict[str, Any] = {**facts.sampling, **wanted}
    if fields.get("seed") is not None:
        fields["seed"] %= 1 << 32
    if fields.get("top_p") == 0:
        fields["top_p"], fields["top_k"] = 1.0, 1  # the likeliest token alone
    try:
        return Sampling(**fields)
    except ValueError as error:
        field = str(error).split()[0]
        name = f"llmaas.{field}" if more.get(field) is not None else prefix + (names or {}).get(field, field)
        raise HttpError(400, str(error), param=name) from None


def stops_of(stop: str | list[str] | None, param: str = "stop") -> tuple[str, ...]:
    """Raises HttpError for stop strings that the daemon would refuse."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > 16:
        raise HttpError(400, f"there may be 16 stop strings, not {len(stops)}", param=param)
    if any(not 0 < len(each) <= 1024 for each in stops):
        raise HttpError(400, "a stop string has 1 to 1024 characters", param=param)
    return stops


def tokens_of(given: int | None, facts: ServedModel, param: str) -> int:
    """The most tokens of an answer: as many as fit in a context, if the request does not say. Raises HttpError."""
    if given is None:
        return facts.context_limit
    if given < 1:
        raise HttpError(400, f"{param} must be at least 1, not {given}", param=param)
    return min(given, facts.context_limit)


def on_full_of(extra: Extensions) -> str:
    if extra.on_full not in (None, "error", "shift"):
        raise HttpError(400, "on_full is one of error, shift", param="llmaas.on_full")
    return extra.on_full or "error"
