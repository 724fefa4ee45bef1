"""Calls at the times of the Azure LLM inference trace 2023 (github Azure/AzurePublicDataset, CC-BY-4.0): its bursts.

Law: when calls come, and how many tokens they generate, is the trace's; who calls is made up, because the trace does
not say it.

The trace has a time, the tokens of the whole prompt, and the tokens generated. Here a call goes to one of some contexts
by a pattern of ``switching`` and adds the prompt, or half of what the model can take, if that is less.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Iterator
from datetime import datetime

from llmaas.errors import BadRequest
from llmaas.traces.call import TraceCall
from llmaas.traces.growth import Conversations
from llmaas.traces.switching import called

_FRACTION = 6
"""Digits of a second that Python's times have; the trace has seven."""


def read_azure(
    lines: Iterable[str], *, pattern: str, contexts: int, limit: int = 4096, seed: int = 1
) -> Iterator[TraceCall]:
    """The trace's requests, in order of time. Raises BadRequest with the number of a wrong line."""
    rng = random.Random(f"azure {pattern} {contexts} {limit} {seed}")
    order = called(pattern, contexts, rng, [1.0] * contexts)
    conversations = Conversations(limit, rng)
    begin: datetime | None = None
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            when = _time(row["TIMESTAMP"])
            prompt, generate = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest(f"line {number} is not of the Azure LLM inference trace 2023: {error}") from error
        begin = begin or when
        i = next(order)
        prompt, generate = max(1, min(prompt, limit // 2)), min(generate, limit // 4)
        yield conversations.add((when - begin).total_seconds(), f"app{i}", f"c{i}", prompt, generate)


def _time(text: str) -> datetime:
    whole, _, fraction = text.partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:_FRACTION].ljust(_FRACTION, '0')}")
