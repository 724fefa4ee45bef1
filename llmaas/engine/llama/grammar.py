"""Grammars of llama.cpp: what an answer has to look like, as GBNF or by a JSON schema.

Law: no text ends the process. llama.cpp calls ``abort`` on a token that the grammar does not allow, so none is accepted
that was not asked about before. Tokens named in a grammar (``<[7]>``, ``!<[7]>``) it allows and then aborts on, so they
are refused. Its parser recurses without bound, follows an empty text as no grammar at all, and
tells what is wrong on stderr only, so the text is looked over here first.
"""

from __future__ import annotations

import ctypes
import json
import re
import time
from typing import Any

from llmaas.calls import MAX_GRAMMAR, Sampling
from llmaas.engine.llama.lib import C, SchemaConverter, collect_errors
from llmaas.errors import BadRequest

_HINT = "docs/protocol.md tells what grammars and schemas may hold."
_MAX_DEPTH = 2000
"""Of parentheses: llama.cpp's parser calls itself for each, and at some ten thousand the process ends."""
_MAX_SCHEMA_DEPTH = 50
_MAX_COUNT = 1000
"""Most items, characters or repetitions that a schema may count: each becomes a piece of grammar."""
_MAX_CPU_S = 2.0
"""CPU time that one question to a grammar may take. One that can be read in many ways takes twice as long per token."""
_SLICE = 2048
_GBNF = re.compile(
    r"""(?P<skip>[ \t\r]+|\#[^\n]*)|(?P<line>\n)
    |(?P<define>(?P<rule>[A-Za-z0-9-]+)[ \t\r\n]*::=)|(?P<name>[A-Za-z0-9-]+)
    |(?P<item>"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\.)
    |(?P<repeat>[*+?]|\{[ ]*[0-9]{1,9}[ ]*(?:,[ ]*(?:[0-9]{1,9}[ ]*)?)?\})|(?P<open>\()|(?P<close>\))|(?P<bar>\|)""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"""\\(?:[nrt\\"\[\]]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|[^\\]""")


class Grammar:
    """Where an answer stands in its grammar."""

    def __init__(self, vocab: Any, gbnf: str) -> None:
        check_gbnf(gbnf)
        self._sampler = _parsed(vocab, gbnf)
        self.end = max(0, int(C.llama_vocab_eos(vocab)), int(C.llama_vocab_eot(vocab)))  # -1: there is none
        self._one = (C.llama_token_data * 1)()
        self._ended = False

    @classmethod
    def of(cls, vocab: Any, sampling: Sampling) -> Grammar | None:
        """The grammar that is asked for. Raises BadRequest."""
        gbnf = schema_gbnf(sampling.json_schema) if sampling.json_schema is not None else sampling.grammar
        return None if gbnf is None else cls(vocab, gbnf)

    def allows(self, token: int) -> bool:
        self._one[0].id, self._one[0].logit = token, 0.0
        self.mask(C.llama_token_data_array(self._one, 1, -1, False))
        return not self._ended and bool(self._one[0].logit == 0.0)

    def mask(self, candidates: Any) -> None:
        """Set the logits of tokens that are not allowed now to minus infinity; of some, if it takes too long."""
        if self._ended:
            return
        begun = time.thread_time()
        first, size = ctypes.addressof(candidates.data.contents), ctypes.sizeof(C.llama_token_data)
        for at in range(0, candidates.size, _SLICE):  # each candidate for itself, so that the time can be bounded
            data = ctypes.cast(first + at * size, C.llama_token_data_p)
            part = C.llama_token_data_array(data, min(_SLICE, candidates.size - at), -1, False)
            C.llama_sampler_apply(self._sampler, ctypes.byref(part))
            if time.thread_time() - begun > _MAX_CPU_S:
                self._ended = True
                return

    def accept(self, token: int) -> None:
        """Go on by a token that is allowed."""
        begun = time.thread_time()
        C.llama_sampler_accept(self._sampler, token)
        self._ended |= time.thread_time() - begun > _MAX_CPU_S

    def close(self) -> None:
        C.llama_sampler_free(self._sampler)


def check_grammar(vocab: Any, sampling: Sampling) -> None:
    """Raise BadRequest unless ``Grammar.of`` works. On any thread."""
    grammar = Grammar.of(vocab, sampling)
    if grammar is not None:
        grammar.close()


def check_gbnf(text: str) -> None:
    """Raise BadRequest, with the line, for what is no GBNF, lacks a rule that it names, or ``root``, or is nested too
    deep."""
    if len(text) > MAX_GRAMMAR:
        raise BadRequest(f"the grammar has {len(text)} characters, more than {MAX_GRAMMAR}", hint=_HINT)
    at, line, depth = 0, 1, 0
    defined, wanted = set[str](), dict[str, int]({"root": 1})
    repeatable = False
    while at < len(text):
        found = _GBNF.match(text, at)
        kind = found.lastgroup if found else None
        if found is None or (kind == "item" and not _sound(found.group())):
            raise _bad(line, f"cannot read {text[at : at + 30]!r}")
        if kind == "repeat" and not repeatable:
            raise _bad(line, f"{found.group()!r} has nothing to repeat")
        depth += (kind == "open") - (kind == "close")
        if not 0 <= depth <= _MAX_DEPTH or (kind == "define" and depth):
            raise _bad(line, f"parentheses do not match, or are nested deeper than {_MAX_DEPTH}")
        if kind == "define":
            defined.add(found.group("rule"))
        elif not defined and kind not in ("skip", "line"):
            raise _bad(line, f"a rule begins with its name and '::=', not with {found.group()!r}")
        if kind == "name":
            wanted.setdefault(found.group(), line)
        if kind not in ("skip", "line"):
            repeatable = kind in ("item", "name", "close", "repeat")
        line += found.group().count("\n")
        at = found.end()
    if depth:
        raise _bad(line, "a parenthesis is not closed")
    for name, where in wanted.items():
        if name not in defined:
            raise _bad(where, f"there is no rule {name!r}")


def _sound(item: str) -> bool:
    return not _ESCAPE.sub("", item)


def _bad(line: int, what: str) -> BadRequest:
    return BadRequest(f"the grammar's line {line}: {what}", hint=_HINT)


def _parsed(vocab: Any, gbnf: str) -> Any:
    with collect_errors() as errors:
        sampler = C.llama_sampler_init_grammar(vocab, gbnf.encode(), b"root")
    if not sampler:
        raise BadRequest(f"llama.cpp cannot use the grammar: {'; '.join(errors) or 'it gives no reason'}", hint=_HINT)
    return sampler


def schema_gbnf(text: str) -> str:
    """The grammar of a JSON schema, by llama-cpp-python's converter. Raises BadRequest for what that cannot do."""
    try:
        schema = json.loads(text)
        _check_schema(schema, _MAX_SCHEMA_DEPTH)
        converter = SchemaConverter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        converter._format_literal = _literal
        converter.visit(converter.resolve_refs(schema, ""), "")
        return str(converter.format_grammar()).encode().decode()  # lone surrogates end here
    except BadRequest:
        raise
    except RecursionError:
        raise BadRequest(
            "the json_schema is nested too deep, or has too many optional properties", hint=_HINT
        ) from None
    except Exception as error:  # the converter asserts, and trips over what it does not know
        raise BadRequest(f"the json_schema cannot be used: {error!r:.300}", hint=_HINT) from None


def _literal(text: str) -> str:
    """For the converter, whose own leaves backslashes as they are, and so would write "a\\nb" as two lines."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r") + '"'


def _check_schema(node: Any, depth: int) -> None:
    """Refuse what would keep the converter busy for ever."""
    if depth == 0:
        raise BadRequest(f"the json_schema is nested deeper than {_MAX_SCHEMA_DEPTH}", hint=_HINT)
    if isinstance(node, list):
        for item in node:
            _check_schema(item, depth - 1)
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        counts = name in ("minItems", "maxItems", "minLength", "maxLength") and isinstance(value, (int, float))
        if counts and not 0 <= value <= _MAX_COUNT:
            raise BadRequest(f"the json_schema's {name} must be an integer in [0, {_MAX_COUNT}]", hint=_HINT)
        if name == "pattern" and isinstance(value, str):
            _check_pattern(value)
        _check_schema(value, depth - 1)


def _check_pattern(pattern: str) -> None:
    """Of stray brackets the converter makes an endless loop, of large counts large grammars."""
    plain = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "", pattern)
    counts = re.findall(r"\{([0-9, ]*)\}", plain)
    if re.search(r"[\[\]{}]", re.sub(r"\{[0-9, ]*\}", "", plain)):
        raise BadRequest(f"the json_schema's pattern {pattern!r:.80} has a stray bracket", hint=_HINT)
    if any(int(n) > _MAX_COUNT for each in counts for n in each.split(",") if n.strip()):
        raise BadRequest(f"the json_schema's pattern {pattern!r:.80} counts beyond {_MAX_COUNT}", hint=_HINT)
