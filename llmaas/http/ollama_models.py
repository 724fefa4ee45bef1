"""Ollama's ``/api/tags``, ``/api/show``, ``/api/ps`` and ``/api/version``.

Law: they tell what is served, and change nothing.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timezone

from llmaas.api.model_list import ListedModel
from llmaas.http.call import HttpCall
from llmaas.http.edge import Edge
from llmaas.http.errors import HttpError
from llmaas.http.facts import ServedModel
from llmaas.http.ollama_types import OllamaDetails, OllamaModel, OllamaModels, OllamaName, OllamaShown, OllamaVersion
from llmaas.version import __version__

API_VERSION = "0.12.6"
"""The version of Ollama whose API this follows: some clients want a certain version at least."""
_EPOCH = datetime.fromtimestamp(0, timezone.utc).isoformat().replace("+00:00", "Z")
_NEVER = "9999-12-31T23:59:59Z"


async def ollama_tags(edge: Edge, call: HttpCall) -> None:
    if (listed := await edge.listed(call)) is not None:
        await call.reply_json(OllamaModels([_listed(each, modified_at=_EPOCH) for each in listed]))
        return
    async with edge.daemon(call) as (client, facts):
        names = [f"{facts.id}:latest", *(f"{facts.id}:{adapter.name}" for adapter in await client.adapters())]
        await call.reply_json(OllamaModels([_model(name, facts, modified_at=_EPOCH) for name in names]))


async def ollama_ps(edge: Edge, call: HttpCall) -> None:
    """The models that are in memory."""
    if (listed := await edge.listed(call)) is not None:
        there = [each for each in listed if each.state == "ready"]
        await call.reply_json(OllamaModels([_listed(each, expires_at=_NEVER, size_vram=0) for each in there]))
        return
    async with edge.daemon(call) as (_, facts):
        found = _model(f"{facts.id}:latest", facts, expires_at=_NEVER, size_vram=0, context_length=facts.context_limit)
        await call.reply_json(OllamaModels([found]))


async def ollama_show(edge: Edge, call: HttpCall) -> None:
    request = await call.read(OllamaName)
    async with edge.daemon(call, request.model or request.name) as (client, facts):
        adapter = facts.adapter_of(request.model or request.name)
        if adapter and adapter not in [each.name for each in await client.adapters()]:
            raise HttpError(404, f"there is no adapter {adapter[:80]!r}")
        parameters = "\n".join(f"{name} {value:g}" for name, value in sorted(facts.sampling.items()))
        info = {
            "general.architecture": "llama",
            "general.name": facts.name,
            "llama.context_length": facts.context_limit,
        }
        able = [*(["completion", "tools"] if facts.writes else []), *(["embedding"] if facts.embeds else [])]
        await call.reply_json(
            OllamaShown(
                f"FROM {facts.id}", parameters, "", _details(facts.file or facts.id), info, able, modified_at=_EPOCH
            )
        )


async def ollama_version(edge: Edge, call: HttpCall) -> None:
    await call.reply_json(OllamaVersion(API_VERSION, __version__))


def _listed(model: ListedModel, **more: object) -> OllamaModel:
    """One of several models, whether it is in memory or not."""
    digest, name = hashlib.sha256(model.name.encode()).hexdigest(), f"{model.name}:latest"
    details = _details(model.file.removesuffix(".gguf"))
    return OllamaModel(name=name, model=name, digest=digest, details=details, size=model.size_bytes, **more)  # type: ignore[arg-type]


def _model(name: str, facts: ServedModel, **more: object) -> OllamaModel:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return OllamaModel(name=name, model=name, digest=digest, details=_details(facts.file or facts.id), **more)  # type: ignore[arg-type]


def _details(file: str) -> OllamaDetails:
    """What the file's name tells."""
    bits = re.search(r"(?i)\b((?:i?q\d\w*)|f16|f32|bf16)\b", file.replace(".", " ").replace("-", " "))
    size = re.search(r"(?i)\b(\d+(?:\.\d+)?[bm])\b", file.replace("-", " "))
    return OllamaDetails(
        family="llama",
        families=["llama"],
        parameter_size=size[1].upper() if size else "",
        quantization_level=bits[1].upper() if bits else "",
    )
