"""``/v1/models`` and ``/health``.

Law: they tell what is served, and change nothing.
"""

from __future__ import annotations

import msgspec

from llmaas.api.async_client import AsyncClient
from llmaas.http.call import HttpCall
from llmaas.http.edge import Edge
from llmaas.http.errors import HttpError
from llmaas.http.facts import ServedModel


class ModelCard(msgspec.Struct):
    id: str
    created: int = 0
    object: str = "model"
    owned_by: str = "llmaas"
    context_length: int = 0


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


class Health(msgspec.Struct):
    status: str
    model: str = ""


async def list_models(edge: Edge, call: HttpCall) -> None:
    if (listed := await edge.listed(call)) is not None:
        await call.reply_json(ModelList([ModelCard(each.name) for each in listed]))
        return
    async with edge.daemon(call) as (client, facts):
        await call.reply_json(ModelList(await _cards(client, facts)))


async def show_model(edge: Edge, call: HttpCall) -> None:
    name = call.path.removeprefix("/v1/models/")
    if not name:
        raise HttpError(404, "there is no model without a name. /v1/models lists what there is.")
    if ":" not in name and await edge.listed(call) is not None:
        await call.reply_json(ModelCard((await edge.models.find(name)).name))
        return
    async with edge.daemon(call, name) as (client, facts):
        adapter = facts.adapter_of(name)
        card = next((card for card in await _cards(client, facts) if card.id == f"{facts.id}:{adapter}"), None)
        if adapter and card is None:
            raise HttpError(404, f"there is no adapter {adapter[:80]!r}", param="model", code="model_not_found")
        await call.reply_json(card or ModelCard(facts.id, context_length=facts.context_limit))


async def health(edge: Edge, call: HttpCall) -> None:
    """200 if the daemon answers; else 503."""
    if edge.stopping:
        raise HttpError(503, "the server is stopping", code="shutting_down", retry=True)
    if (listed := await edge.listed(call)) is not None:
        await call.reply_json(Health("ok", listed[0].name))
        return
    async with edge.daemon(call) as (client, facts):
        await client.ping()
        await call.reply_json(Health("ok", facts.id))


async def _cards(client: AsyncClient, facts: ServedModel) -> list[ModelCard]:
    """The model, and each adapter on it as a model of its own."""
    names = [facts.id, *(f"{facts.id}:{adapter.name}" for adapter in await client.adapters())]
    return [ModelCard(name, context_length=facts.context_limit) for name in names]
