"""The table of endpoints: which handler answers which path and method.

Law: a path that is not here is 404, a method that is not is 405, in the shape of the API that the path belongs to.
"""

from __future__ import annotations

from starlette.routing import Route, Router

from llmaas.http.call import HttpCall
from llmaas.http.chat import chat_completions
from llmaas.http.completions import completions
from llmaas.http.edge import Edge, Endpoint, Handler
from llmaas.http.embeddings import ollama_embed, ollama_embeddings, openai_embeddings
from llmaas.http.errors import HttpError
from llmaas.http.metrics import metrics
from llmaas.http.models import health, list_models, show_model
from llmaas.http.ollama_answers import ollama_chat, ollama_generate
from llmaas.http.ollama_models import ollama_ps, ollama_show, ollama_tags, ollama_version
from llmaas.http.openapi import openapi
from llmaas.http.responses import responses
from llmaas.http.web.page import page
from llmaas.http.web.watch import create_context, delete_context, show_context, state

TABLE: dict[str, dict[str, Handler]] = {
    "/": {"GET": page},
    "/llmaas/state": {"GET": state},
    "/llmaas/contexts/{name:path}": {"GET": show_context, "PUT": create_context, "DELETE": delete_context},
    "/health": {"GET": health},
    "/metrics": {"GET": metrics},
    "/openapi.json": {"GET": openapi},
    "/v1/models": {"GET": list_models},
    "/v1/models/{model:path}": {"GET": show_model},
    "/v1/chat/completions": {"POST": chat_completions},
    "/v1/completions": {"POST": completions},
    "/v1/responses": {"POST": responses},
    "/v1/embeddings": {"POST": openai_embeddings},
    "/api/chat": {"POST": ollama_chat},
    "/api/generate": {"POST": ollama_generate},
    "/api/tags": {"GET": ollama_tags},
    "/api/show": {"POST": ollama_show},
    "/api/ps": {"GET": ollama_ps},
    "/api/version": {"GET": ollama_version},
    "/api/embed": {"POST": ollama_embed},
    "/api/embeddings": {"POST": ollama_embeddings},
}
"""Path -> method -> handler."""
STATIC = ("/",)
"""What everybody may see: the web page asks for a token where one is needed."""


def application(edge: Edge) -> Router:
    """The whole server as an ASGI application."""
    routes = [
        Route(path, Endpoint(edge, _by_method(methods), is_static=path in STATIC)) for path, methods in TABLE.items()
    ]
    router = Router(routes, redirect_slashes=False)
    router.default = Endpoint(edge, _unknown)
    return router


def _by_method(methods: dict[str, Handler]) -> Handler:
    async def handle(edge: Edge, call: HttpCall) -> None:
        handler = methods.get("GET" if call.method == "HEAD" else call.method)
        if handler is None:
            words = f"{call.path} takes {', '.join(methods)}, not {call.method}."
            raise HttpError(405, words, allow=[*methods, "OPTIONS"])
        await handler(edge, call)

    return handle


async def _unknown(edge: Edge, call: HttpCall) -> None:
    raise HttpError(404, f"there is nothing at {call.path[:200]!r}. docs/http.md lists what there is.")
