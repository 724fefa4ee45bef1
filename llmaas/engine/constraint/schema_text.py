"""A JSON schema as text, read with every bound checked, and the places that its references name.

Law: the time is linear in the text. Nothing here fetches anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from llmaas.engine.constraint.limits import MAX_SCHEMA_DEPTH, refuse

Json = Any
"""What ``json`` makes of a text."""
_DIALECTS = {
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "https://json-schema.org/draft/2020-12/schema": 2020,
}


class Document:
    """A schema's text, read. ``dialect``: 4, 6, 7, 2019 or 2020. Raises BadRequest."""

    def __init__(self, text: str) -> None:
        try:
            self.root: Json = json.loads(text, parse_constant=_no_constant)
            json.dumps(self.root, ensure_ascii=False, allow_nan=False).encode()
        except RecursionError:
            raise refuse("the json_schema is nested too deep") from None
        except UnicodeEncodeError:
            raise refuse("the json_schema has half of a surrogate pair, which is no character") from None
        except ValueError as error:
            raise refuse(f"the json_schema is not JSON: {error!s:.200}") from None
        if not isinstance(self.root, (dict, bool)):
            raise refuse("the json_schema must be an object, true or false")
        top = self.root if isinstance(self.root, dict) else {}
        name = top.get("$schema", "https://json-schema.org/draft/2020-12/schema")
        dialect = _DIALECTS.get(name.removesuffix("#")) if isinstance(name, str) else None
        if dialect is None:
            raise refuse(f"the json_schema's $schema {name!r:.80} is not known; those of drafts 4 to 2020-12 are")
        self.dialect = dialect
        base = top.get("$id", "")
        self._base = base.removesuffix("#") if isinstance(base, str) else ""
        self._anchors = dict(_anchors(self.root))

    def resolve(self, reference: str) -> Json:
        """The schema that a ``$ref`` names. Raises BadRequest unless it is within the document."""
        fragment = reference.removeprefix(self._base) if self._base else reference
        if fragment and not fragment.startswith("#"):
            raise refuse(f"the json_schema's $ref {reference!r:.80} is not allowed: only '#...' within the schema is")
        found = self._find(unquote(fragment[1:]))
        if not isinstance(found, (dict, bool)):
            raise refuse(f"the json_schema's $ref {reference!r:.80} names no schema")
        return found

    def follow(self, schema: Json) -> Json:
        """The schema, or what it names if it is a reference and nothing else, as far as that goes."""
        for _ in range(MAX_SCHEMA_DEPTH):
            if not isinstance(schema, dict) or list(schema) != ["$ref"] or not isinstance(schema["$ref"], str):
                return schema
            schema = self.resolve(schema["$ref"])
        raise refuse("the json_schema has references that name one another in a ring")

    def _find(self, pointer: str) -> Json:
        if pointer and not pointer.startswith("/"):
            return self._anchors.get(pointer)
        node = self.root
        for step in pointer.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict):
                node = node.get(step)
            elif isinstance(node, list) and step.isascii() and step.isdigit() and len(step) < 8:
                node = node[int(step)] if int(step) < len(node) else None
            else:
                return None
        return node


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _anchors(root: Json) -> Iterator[tuple[str, Json]]:
    """The schemas with an ``$anchor``, and a check of the depth of everything."""
    todo = [(root, 0)]
    seen = set()
    while todo:
        node, depth = todo.pop()
        if depth > 2 * MAX_SCHEMA_DEPTH:  # a schema within another one is two values deeper
            raise refuse(f"the json_schema is nested deeper than {MAX_SCHEMA_DEPTH}")
        if isinstance(node, float) and not math.isfinite(node):
            raise refuse("the json_schema has a number that is too large")
        if isinstance(node, list):
            todo += [(item, depth + 1) for item in node]
        if not isinstance(node, dict):
            continue
        todo += [(value, depth + 1) for value in node.values()]
        anchor = node.get("$anchor")
        if isinstance(anchor, str):
            if anchor in seen:
                raise refuse(f"the json_schema has the $anchor {anchor!r:.80} twice")
            seen.add(anchor)
            yield anchor, node
