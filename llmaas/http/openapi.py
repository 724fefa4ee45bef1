"""``/openapi.json``: what is served, as an OpenAPI 3.1 document.

Law: made from the same types that requests are read by, so that it cannot say anything else.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import msgspec

from llmaas.http import embeddings_types as embeddings
from llmaas.http import ollama_types as ollama
from llmaas.http.call import HttpCall
from llmaas.http.chat_types import ChatCompletion, ChatRequest
from llmaas.http.completions_types import Completion, CompletionRequest
from llmaas.http.edge import Edge
from llmaas.http.models import Health, ModelCard, ModelList
from llmaas.http.responses_types import ResponseObject, ResponseRequest
from llmaas.http.web import watch
from llmaas.records import ContextDetail, ContextInfo
from llmaas.version import __version__


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


class OllamaError(msgspec.Struct):
    error: str


class Described(NamedTuple):
    """One operation."""

    method: str
    path: str
    summary: str
    request: Any = None
    response: Any = None
    streams: str = ""
    """Media type of the response as a stream; "" if there is none."""
    texts: tuple[str, ...] = ()
    """Media types of the response that are no JSON."""


_EVENTS, _LINES = "text/event-stream", "application/x-ndjson"
OPERATIONS = (
    Described("get", "/health", "Whether the daemon answers", response=Health),
    Described("get", "/v1/models", "The model, and each adapter on it", response=ModelList),
    Described("get", "/v1/models/{model}", "One of them", response=ModelCard),
    Described("post", "/v1/chat/completions", "Answer a conversation", ChatRequest, ChatCompletion, _EVENTS),
    Described("post", "/v1/completions", "Go on with raw text", CompletionRequest, Completion, _EVENTS),
    Described("post", "/v1/responses", "Answer, with items and events", ResponseRequest, ResponseObject, _EVENTS),
    Described(
        "post", "/v1/embeddings", "A vector for each text", embeddings.EmbeddingRequest, embeddings.EmbeddingList
    ),
    Described("post", "/api/chat", "Answer a conversation", ollama.OllamaChatRequest, ollama.OllamaReply, _LINES),
    Described("post", "/api/generate", "Answer a prompt", ollama.OllamaGenerateRequest, ollama.OllamaReply, _LINES),
    Described(
        "post", "/api/embed", "A vector for each text", embeddings.OllamaEmbedRequest, embeddings.OllamaEmbedReply
    ),
    Described(
        "post",
        "/api/embeddings",
        "A vector for one text",
        embeddings.OllamaEmbeddingRequest,
        embeddings.OllamaEmbeddingReply,
    ),
    Described("get", "/api/tags", "The model, and each adapter on it", response=ollama.OllamaModels),
    Described("post", "/api/show", "What is known of the model", ollama.OllamaName, ollama.OllamaShown),
    Described("get", "/api/ps", "The model, which is loaded", response=ollama.OllamaModels),
    Described("get", "/api/version", "Versions", response=ollama.OllamaVersion),
    Described("get", "/metrics", "Figures of the daemon in Prometheus' text format", texts=("text/plain",)),
    Described(
        "get",
        "/",
        "A web page; other clients are told that this speaks Ollama's API",
        texts=("text/html", "text/plain"),
    ),
    Described("get", "/llmaas/state", "The app's contexts and calls, and how full the tiers are", response=watch.State),
    Described("get", "/llmaas/contexts/{name}", "A context with its conversation", response=ContextDetail),
    Described("put", "/llmaas/contexts/{name}", "Make a context, if there is none", watch.NewContext, ContextInfo),
    Described("delete", "/llmaas/contexts/{name}", "Delete a context", response=watch.Deleted),
)


async def openapi(edge: Edge, call: HttpCall) -> None:
    await call.reply(_document())


@functools.cache
def _document() -> bytes:
    types = [kind for each in OPERATIONS for kind in (each.request, each.response) if kind] + [ErrorBody, OllamaError]
    refs, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    ref_of = dict(zip(types, refs, strict=True))
    paths: dict[str, Any] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = _operation(each, ref_of)
    info = {"title": "llmaas", "version": __version__, "description": "One language model, served to every app."}
    schemas = _plain_arrays(components)
    return msgspec.json.encode({"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}})


def _plain_arrays(schema: Any) -> Any:
    """A tuple of one type as an array of it: programs that read such documents often know no ``prefixItems``."""
    if isinstance(schema, list):
        return [_plain_arrays(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _plain_arrays(value) for key, value in schema.items()}
    if (types := plain.pop("prefixItems", None)) is not None:
        assert all(each == types[0] for each in types), "a tuple of several types is no array"
        plain["items"] = types[0]
    return plain


def _operation(each: Described, ref_of: dict[Any, Any]) -> dict[str, Any]:
    error = ref_of[OllamaError if each.path.startswith("/api/") else ErrorBody]
    responses: dict[str, Any] = {"default": {"description": "An error", "content": _json(error)}}
    if each.texts:
        content = {kind: {"schema": {"type": "string"}} for kind in each.texts}
        responses["200"] = {"description": "OK", "content": content}
    if each.response is not None:
        content = _json(ref_of[each.response])
        if each.streams:
            content[each.streams] = {"schema": {"type": "string"}}
        responses["200"] = {"description": "OK", "content": content}
    operation: dict[str, Any] = {"summary": each.summary, "responses": responses}
    if each.request is not None:
        operation["requestBody"] = {"required": True, "content": _json(ref_of[each.request])}
    if named := re.findall(r"{(\w+)}", each.path):
        schema = {"type": "string"}
        operation["parameters"] = [{"name": n, "in": "path", "required": True, "schema": schema} for n in named]
    return operation


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
