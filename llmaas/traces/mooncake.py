"""Calls of the Mooncake traces (github kvcache-ai/Mooncake, Apache-2.0): requests that share prefixes.

Law: nothing is made up but the contexts' names.

A request has a time in milliseconds, the tokens of the whole prompt and of the answer, and ``hash_ids``: one for each
512 tokens of the prompt, equal if these and all tokens before them are equal. A request whose ids begin with all full
blocks of an earlier request's prompt goes on with its context, if no other request has done so. Any other begins a
context; contexts that begin with the same block share a ``prefix``, as long as what all of them have in common.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmaas.errors import BadRequest
from llmaas.frozen import frozen
from llmaas.traces.call import TraceCall

BLOCK = 512
"""Tokens of a block."""


@dataclass(slots=True)
class _Open:
    """A context that a request may go on with."""

    name: str
    tokens: int


@frozen
class _Request:
    t: float
    tokens: int
    generate: int
    blocks: tuple[int, ...]


def read_mooncake(lines: Iterable[str], *, limit: int = 32768, scale: float = 1.0) -> Iterator[TraceCall]:
    """The trace's calls. All lengths are multiplied by ``scale``; a context that then outgrows ``limit`` is left out
    from there on. Raises BadRequest with the number of a wrong line.
    """
    requests = list(_requests(lines))
    calls, first_blocks = _as_contexts(requests)
    shared = _shared(first_blocks)
    lengths: dict[str, int] = defaultdict(int)
    for call in calls:
        blocks = first_blocks.pop(call.context, None)
        call = _scaled(call, scale)
        lengths[call.context] += call.prompt + call.generate
        if lengths[call.context] > limit:
            continue
        if blocks and (common := shared.get(blocks[0], 0)):
            n = min(call.prompt, max(1, round(common * BLOCK * scale)))
            call = replace(call, prefix=f"block-{blocks[0]}", prefix_tokens=n)
        yield call


def _requests(lines: Iterable[str]) -> Iterator[_Request]:
    for number, line in enumerate(lines, start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            ids = tuple(map(int, row["hash_ids"]))
            yield _Request(row["timestamp"] / 1e3, int(row["input_length"]), int(row["output_length"]), ids)
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest(f"line {number} is not of a Mooncake trace: {error}") from error


def _as_contexts(requests: Sequence[_Request]) -> tuple[list[TraceCall], dict[str, tuple[int, ...]]]:
    """Each request as a call of a context, and the blocks that each context began with."""
    going_on: dict[int, _Open] = {}
    """Last full block of a context's prompt -> that context."""
    calls: list[TraceCall] = []
    began: dict[str, tuple[int, ...]] = {}
    for request in sorted(requests, key=lambda r: r.t):
        full = request.blocks[: request.tokens // BLOCK]
        found = next((going_on.pop(block) for block in reversed(full) if block in going_on), None)
        if found is None:
            found = _Open(f"c{len(began)}", 0)
            began[found.name] = full
        prompt = max(1, request.tokens - found.tokens)
        calls.append(TraceCall(round(request.t, 3), "mooncake", found.name, prompt, request.generate))
        found.tokens += prompt + request.generate
        if full:
            going_on[full[-1]] = found
    return calls, began


def _shared(began: dict[str, tuple[int, ...]]) -> dict[int, int]:
    """First block -> how many blocks all contexts that begin with it have in common; only where there are several."""
    groups: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for blocks in began.values():
        if blocks:
            groups[blocks[0]].append(blocks)
    found = {}
    for first, group in groups.items():
        if len(group) > 1:
            least, most = min(group), max(group)  # what these two have in common, all have
            common = [a for a, b in zip(least, most, strict=False) if a == b]
            found[first] = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(common))
    return found


def _scaled(call: TraceCall, scale: float) -> TraceCall:
    return replace(call, prompt=max(1, round(call.prompt * scale)), generate=round(call.generate * scale))
