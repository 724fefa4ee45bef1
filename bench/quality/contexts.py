"""The contexts whose answers are compared: real ones from a file, or those that the bench finds and makes up itself.

Law: a case is tokens and probes. A probe says how many leading tokens come back coded (whole chunks), what is then fed
without coding, and which part of that is scored. So one loop measures texts, hidden facts ("needles") and next actions.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.lib.texts import prose
from bench.quality.made import SYSTEM, screens, trips
from llmaas.cli.demo.data import conversations
from llmaas.engine.base import Engine
from llmaas.records import CHUNK_TOKENS, Message

KINDS = ("ui_automation", "task_dialogue", "chat", "document")
_FIRST = (
    *("ui-camera", "ui-clock", "ui-musicplayer", "sgd-buses_1", "sgd-hotels_1", "sgd-movies_1"),
    *("chat-1", "chat-3", "chat-4", "doc-pride-b", "doc-wiki-1", "doc-holmes-2"),
)
"""Ids that are taken before others of their kind, because they are long and differ from each other."""
_FACTS = (
    "The code of the blue door",
    "The price of the red car",
    "The phone number of Anna",
    "The year of the great flood",
)
_LEAST_PREFIX = 256
"""Tokens before an action that is asked for."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """``coded`` tokens of a context are coded, and ``scored`` tokens after them compared. ``per_kind``: contexts of
    each kind. ``asked``: the most actions or facts that are asked for in a context.
    """

    coded: int
    scored: int
    per_kind: int
    asked: int


@dataclass(frozen=True, slots=True)
class Probe:
    """After ``coded`` tokens of the context, ``fed`` is fed; ``fed[first:]`` is what the model should say."""

    task: str
    coded: int
    fed: tuple[int, ...]
    first: int = 1


@dataclass(frozen=True, slots=True)
class Case:
    """A context and what is asked of it. ``tokens`` are at least as many as each probe's ``coded``."""

    name: str
    kind: str
    tokens: tuple[int, ...]
    probes: tuple[Probe, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    name: str
    kind: str
    messages: tuple[Message, ...]


def cases(engine: Engine, dialogues: Sequence[Dialogue], sizes: Sizes) -> Iterator[Case]:
    """The first dialogues of each kind that are long enough, with text probes; UI automation has next actions, too."""
    for kind in KINDS:
        found = 0
        for dialogue in (one for one in dialogues if one.kind == kind):
            if found < sizes.per_kind and (case := _text_case(engine, dialogue, sizes)):
                found += 1
                yield case


def _text_case(engine: Engine, dialogue: Dialogue, sizes: Sizes) -> Case | None:
    tokens = _tokens(engine, engine.render(dialogue.messages, answer=False))
    stop = sizes.coded + sizes.scored
    if len(tokens) < stop:
        return None
    probes = [Probe("text", sizes.coded, tuple(tokens[sizes.coded : stop]))]
    if dialogue.kind == "ui_automation":
        probes += _actions(engine, dialogue.messages, tokens, sizes)
    return Case(dialogue.name, dialogue.kind, tuple(tokens[: sizes.coded]), tuple(probes))


def _actions(engine: Engine, messages: Sequence[Message], tokens: Sequence[int], sizes: Sizes) -> list[Probe]:
    """Probes for the last actions that the assistant takes within the coded part, each after its own prefix."""
    probes = []
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _tokens(engine, engine.render(messages[:i], answer=True))
        # At least one token is fed before the action, to predict its first one.
        coded = (len(before) - 1) // CHUNK_TOKENS * CHUNK_TOKENS
        if coded > sizes.coded:
            break
        if coded >= _LEAST_PREFIX and before[:coded] == tokens[:coded]:
            # Of "id=3, action=tap, input text=N/A" only the element counts: the rest is nearly always the same.
            action = engine.tokenize(message.content.split(",")[0], special=False, bos=False)
            probes.append(Probe("action", coded, (*before[coded:], *action), len(before) - coded))
    return probes[-sizes.asked :] if sizes.asked else []


def needles(engine: Engine, sizes: Sizes, seed: int) -> Iterator[Case]:
    """Documents in which facts are hidden at several depths, with a question about each fact."""
    for n in range(sizes.per_kind):
        rng = random.Random(f"needle {seed} {n}")
        codes = {fact: str(rng.randrange(10_000, 100_000)) for fact in _FACTS[: sizes.asked]}
        n_tokens = sizes.coded - 24 * len(codes)
        whole = prose(engine, n_tokens, 100 * seed + n)
        hiding = prose(engine, n_tokens - CHUNK_TOKENS, 100 * seed + n)  # shorter, so that facts lie in coded chunks
        lines = hiding.splitlines()
        for i, (fact, code) in enumerate(codes.items()):
            lines.insert(round(len(lines) * (i + 0.5) / len(codes)), f"{fact} is {code}.")
        yield _needle_case(engine, f"needle-{n}", "\n".join(lines) + whole[len(hiding) :], codes)


def _needle_case(engine: Engine, name: str, document: str, codes: dict[str, str]) -> Case:
    asked = []
    for fact in codes:
        question = f"{document}\n\nWhat is {fact[0].lower()}{fact[1:]}?"
        messages = (Message("system", SYSTEM["document"]), Message("user", question))
        asked.append(_tokens(engine, engine.render(messages, answer=True) + f"{fact} is"))
    shared = next(i for i, column in enumerate(zip(*asked, strict=False)) if len(set(column)) > 1)
    coded = shared // CHUNK_TOKENS * CHUNK_TOKENS
    probes = []
    for tokens, code in zip(asked, codes.values(), strict=True):
        answer = engine.tokenize(" " + code, special=False, bos=False)
        probes.append(Probe("needle", coded, (*tokens[coded:], *answer), len(tokens) - coded))
    return Case(name, "needle", tuple(asked[0][:coded]), tuple(probes))


def _tokens(engine: Engine, text: str) -> list[int]:
    return engine.tokenize(text, special=True, bos=True)


# -- where dialogues come from ----------------------------------------------------------------------


def from_file(path: Path) -> list[Dialogue]:
    """One JSON object a line (gzip or plain): id, kind, system, turns [{role, content}]."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows.sort(key=lambda row: _FIRST.index(row["id"]) if row["id"] in _FIRST else len(_FIRST))
    return [
        Dialogue(
            row["id"],
            row["kind"],
            (Message("system", row["system"]), *(Message(turn["role"], turn["content"]) for turn in row["turns"])),
        )
        for row in rows
    ]


def own(engine: Engine, sizes: Sizes, seed: int) -> list[Dialogue]:
    """Real chats and prose, and made-up screens and bookings: at least ``sizes.per_kind`` of each kind."""
    found = []
    for n in range(sizes.per_kind):
        text = prose(engine, sizes.coded + sizes.scored, seed + n)
        found.append(Dialogue(f"prose-{n}", "document", (Message("system", SYSTEM["document"]), Message("user", text))))
        for kind, make in (("ui_automation", screens), ("task_dialogue", trips)):
            turns = make(random.Random(f"{kind} {seed} {n}"))
            found.append(Dialogue(f"{kind}-{n}", kind, (Message("system", SYSTEM[kind]), *turns)))
    for chat in conversations():
        found.append(Dialogue(f"chat-{chat.app}", "chat", chat.history(len(chat.turns))))
    return found
