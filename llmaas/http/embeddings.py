"""``/v1/embeddings`` and Ollama's ``/api/embed``: refused, since the daemon computes none.

Law: an error that says so, at once, in the shape of each API.
"""

from __future__ import annotations

from llmaas.http.call import HttpCall
from llmaas.http.edge import Edge
from llmaas.http.errors import HttpError


async def embeddings(edge: Edge, call: HttpCall) -> None:
    raise HttpError(
        501,
        "this server computes no embeddings. Use a program for embedding models beside it.",
        code="not_supported",
    )
