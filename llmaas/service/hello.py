"""What a client is told of the daemon when it connects (docs/protocol.md).

Law: pure; facts of the model and of settings that do not change.
"""

from __future__ import annotations

from llmaas.planner.settings import PlannerSettings
from llmaas.records import ModelInfo
from llmaas.service.settings import ServiceSettings


def hello_facts(
    model: ModelInfo, settings: ServiceSettings, planner: PlannerSettings, embedding_limit: int
) -> dict[str, object]:
    return {
        "model": model.name,
        "context_limit": planner.ctx_limit,
        "note": "; ".join(filter(None, (model.chat_note, model.note))),
        **({"served_as": settings.served_as} if settings.served_as else {}),
        "model_file": model.file,
        "sampling": dict(model.sampling),
        "tools": model.tools,
        "tool_mark": model.tool_mark,
        "embedding_limit": embedding_limit,
        "writes": model.writes,
    }
