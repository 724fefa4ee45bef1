"""Questions of a client, each once: requests for an answer that is read as a whole.

Law: pure. As in ``operations``, both clients make their methods of these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmaas.api.given_messages import Messages
from llmaas.api.operation import Question, changed
from llmaas.api.operations import GREEDY, generate
from llmaas.calls import DEFAULT_TERMS, Done, FinishReason, Sampling, Terms
from llmaas.errors import AnswerIncomplete, BadRequest, MalformedFrame


def ask(
    context: str,
    question: Messages,
    *,
    max_tokens: int = 256,
    temperature: float | None = None,
    sampling: Sampling = GREEDY,
    stop: Iterable[str] = (),
    priority: int | None = None,
    terms: Terms = DEFAULT_TERMS,
    on_full: str = "error",
    idempotency_key: str | None = None,
) -> Question[str]:
    """Add a question to a context, wait for the whole answer, and return its text. The arguments are those of
    ``generate``, which streams."""
    request = generate(
        context,
        question,
        max_tokens=max_tokens,
        temperature=temperature,
        sampling=sampling,
        stop=stop,
        priority=priority,
        terms=terms,
        on_full=on_full,
        idempotency_key=idempotency_key,
    )
    return Question(request, lambda text, done: text)


def ask_json(
    context: str,
    question: Messages,
    schema: Mapping[str, Any] | str,
    *,
    max_tokens: int = 1024,
    temperature: float | None = None,
    sampling: Sampling = GREEDY,
    priority: int | None = None,
    terms: Terms = DEFAULT_TERMS,
    on_full: str = "error",
    idempotency_key: str | None = None,
) -> Question[Any]:
    """Add a question to a context, and return the answer as Python values: it is JSON that follows ``schema``, a JSON
    schema (json-schema.org) as a map or as text. Of an object it is a dict.

    Raises BadRequest for a schema that cannot be followed, AnswerIncomplete if ``max_tokens`` or the context's end came
    before the JSON's; what came of the answer is in the context then. The other arguments are those of ``generate``.
    """
    import json  # here and below: most programs that import a client ask for none

    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
    except (TypeError, ValueError) as e:
        raise BadRequest(f"the schema is no JSON: {e}") from e
    request = generate(
        context,
        question,
        max_tokens=max_tokens,
        temperature=temperature,
        sampling=changed(sampling, json_schema=text),
        priority=priority,
        terms=terms,
        on_full=on_full,
        idempotency_key=idempotency_key,
    )
    return Question(request, _read_json)


def _read_json(text: str, done: Done) -> Any:
    if done.reason is not FinishReason.STOP:
        raise AnswerIncomplete(f"the answer ended after {done.n_generated} tokens, before its JSON was complete")
    import json

    try:
        return json.loads(text)
    except ValueError as e:
        raise MalformedFrame(f"the daemon's answer is not JSON: {e}") from e
