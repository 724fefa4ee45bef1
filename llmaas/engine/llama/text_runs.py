"""How long a stretch of text llama.cpp's pre-tokenizers may match at once, and what is refused because of it.

Law: pure. It knows the pre-tokenizers of one version of llama.cpp by name (``llama_vocab_pre_type``, and the regular
expressions in ``llm_tokenizer_bpe``): who changes the version looks at them again.

Most byte-level BPE vocabularies cut text into words first. For some, llama.cpp does this in a loop; for the others with
``std::regex``, which calls itself for every character that it matches: 320 bytes of stack each (measured on x86-64 for
35 pre-tokenizers). 26,000 of one letter in a row are more than the usual 8 MiB. Two expressions take quadratic time as
well: 36 s for 20,000 spaces and a digit.
"""

from __future__ import annotations

import re

from llmaas.errors import BadRequest

MOST_RUN = 1 << 16
"""Characters in a row, without white space between them, for pre-tokenizers that use ``std::regex``: 42 MB of stack at
most, because a match may have two such runs."""
MOST_SQUARES = 1 << 23
"""For the expressions that take quadratic time: the sum of the squares of the runs' lengths. Under a second."""

_BY_HAND = {
    "GPT-2's": "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en "
    "jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling exaone4",
    "digit by digit, then GPT-2's": "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "Llama 3's": "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe "
    "chatglm-bpe glm4 glm5",
    "Qwen's": "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2 qwen35 laguna",
    "Kimi K2's": "kimi-k2",
    "lines": "gemma4 granite-embed-multi-311m sarvam-moe",
}
"""Pre-tokenizers for which llama.cpp uses no ``std::regex`` with a repetition, by what it does instead."""
_NO_REGEX = frozenset(name for names in _BY_HAND.values() for name in names.split())
_ACROSS_SPACES = frozenset(["exaone-moe"])
"""Pre-tokenizers with words that may hold single spaces."""
_SQUARED = {
    "deepseek-llm": (re.compile(r"\s+"), re.compile(r"[^\sA-Za-z!-/:-~]")),  # \s+$ is tried at each space of a run
    "superbpe": (re.compile("[0-9]+"), re.compile("")),  # (?=(\d{3})+(?!\d)) looks to the end from each digit
}
"""Pre-tokenizers, each with the runs that take it quadratic time, if this follows them."""

# What one match may hold: no white space, or nothing but. Characters for which Python and llama.cpp may differ belong
# to both kinds, and so does the slash, which some expressions take together with newlines.
_BOTH = "\x1c-\x1f\x85\xa0\u1680\u180e\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff/"
_WHITE = re.compile(rf"[\t-\r {_BOTH}]+")
_WORD = re.compile(r"[^\t-\r ]+")
_WORDS = re.compile(r"[^\t-\r]+")


def longest_run(pre: str, text: str) -> int:
    """The most characters of ``text`` that a regular expression of the pre-tokenizer ``pre`` may match at once, but for
    a factor of two; 0 if llama.cpp uses none for it."""
    if pre in _NO_REGEX:
        return 0
    kinds = (_WHITE, _WORDS if pre in _ACROSS_SPACES else _WORD)
    return max(max((found.end() - found.start() for found in kind.finditer(text)), default=0) for kind in kinds)


def refuse_long_runs(pre: str, text: str, longest: int) -> None:
    """Raise BadRequest for a text that would take too much stack or time; ``longest`` is ``longest_run`` of it."""
    if longest > MOST_RUN:
        raise BadRequest(
            f"the text has {longest} characters in a row without a break; this model's tokenizer takes {MOST_RUN}",
            hint="Put spaces or line breaks into it.",
        )
    if pre not in _SQUARED:
        return
    runs, follow = _SQUARED[pre]
    lengths = [found.end() - found.start() for found in runs.finditer(text) if follow.match(text, found.end())]
    if sum(length**2 for length in lengths) > MOST_SQUARES:
        raise BadRequest(
            "the text has too many spaces or digits in a row for this model's tokenizer, which would take minutes",
            hint="Shorten the runs of spaces or digits.",
        )
