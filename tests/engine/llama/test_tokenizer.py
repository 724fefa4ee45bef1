"""Text to tokens: long texts, long runs of one character, and what is refused."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmaas.engine.llama import model
from llmaas.engine.llama.lib import C, load_model
from llmaas.engine.llama.model import LlamaModel
from llmaas.engine.llama.text_runs import MOST_RUN
from llmaas.engine.llama.tokenizer import MOST_UNCUT, Tokenizer
from llmaas.engine.llama.vocab import Vocab
from llmaas.errors import BadRequest, ContextTooLong, ModelUnreadable
from tests.support.cpu_time import at_most
from tests.support.gguf_files import (
    BOOL,
    CONTROL,
    LIST,
    TEXT,
    U32,
    USER_DEFINED,
    Meta,
    read_meta,
    sentencepiece_meta,
    write_model,
    write_vocab,
)

LOOPS = ["smollm", "qwen2", "llama-bpe", "gemma4", "kimi-k2", "laguna"]
"""Pre-tokenizers that are loops in llama.cpp."""
REGEXES = [
    *("gpt-4o", "tekken", "bloom", "viking", "deepseek-v3", "deepseek-llm", "deepseek-coder", "falcon", "default"),
    *("exaone-moe", "superbpe", "youtu", "tiny_aya", "jais-2", "chameleon", "seed-coder", "minicpm5", "afmoe"),
    *("bailingmoe", "spark2_5", "hunyuan-dense", "granite-embed-multi-97m", "ufakzeka", "poro-chat", "gpt3-finnish"),
]
SOME = ["gpt-4o", "exaone-moe"]
RUNS = [
    *("A", "-", "\n", " ", "1", "/", "'", "\U0001f600", "\u4e2d", "\u1000", "\u0301", "\u00a0"),
    *("aB", "a1", "a ", "\r\n", "\n/", "-\n", "\u00a0 "),
]

Open = Callable[[Path, str], Vocab]


@pytest.fixture
def vocabulary() -> Iterator[Open]:
    """Opens files without weights, and closes them at the end."""
    handles = []

    def opened(path: Path, pre: str) -> Vocab:
        handles.append(load_model(path, vocab_only=True))
        return Vocab(handles[-1], pre)

    yield opened
    for handle in handles:
        C.llama_model_free(handle)


@pytest.fixture
def of_pre(gguf: Path, tmp_path: Path, vocabulary: Open) -> Callable[[str], Vocab]:
    """The packaged model's vocabulary with another pre-tokenizer."""
    return lambda pre: vocabulary(write_vocab(tmp_path / f"{pre}.gguf", gguf, pre=pre), pre)


# -- long runs


_CHILD = """
import sys
from pathlib import Path
from llmaas.engine.llama.lib import load_model
from llmaas.engine.llama.tokenizer import Tokenizer
from llmaas.engine.llama.vocab import Vocab
from llmaas.errors import BadRequest
path, pre, n, runs = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
tokenizer = Tokenizer(Vocab(load_model(Path(path), vocab_only=True), pre))
for run in runs:
    for text in ((run * n)[:n], (run * n)[:n] + "1", "x" + (run * n)[:n] + "x"):
        try:
            print(repr(run), len(tokenizer.tokens(text, special=False)), flush=True)
        except BadRequest as refused:
            print(repr(run), refused.message, flush=True)
print("alive")
"""


def read_runs(path: Path, pre: str, n: int) -> None:
    """Read runs of ``n`` characters in a process that may end over it."""
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path), pre, str(n), *RUNS],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert child.stdout.endswith("alive\n"), (pre, child.returncode, child.stdout[-300:], child.stderr[-300:])


@pytest.mark.parametrize("pre", SOME)
def test_no_run_ends_the_process(gguf: Path, tmp_path: Path, pre: str) -> None:
    path = write_vocab(tmp_path / "model.gguf", gguf, pre=pre)
    read_runs(path, pre, 30_000)


@pytest.mark.slow
@pytest.mark.parametrize("pre", [*LOOPS, *REGEXES])
def test_no_run_of_any_length_ends_the_process_with_any_pre_tokenizer(gguf: Path, tmp_path: Path, pre: str) -> None:
    path = write_vocab(tmp_path / "model.gguf", gguf, pre=pre)
    for n in (MOST_RUN - 2, 1_000_000):
        read_runs(path, pre, n)


_MEASURING_CHILD = """
import ctypes, resource, sys
from pathlib import Path
from llmaas.engine.llama.lib import load_model
from llmaas.engine.llama.tokenizer import Tokenizer
from llmaas.engine.llama.vocab import Vocab
def resident():
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but kept for later, varies
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
path, n = sys.argv[1], int(sys.argv[2])
tokenizer = Tokenizer(Vocab(load_model(Path(path), vocab_only=True), "gpt-4o"))
tokenizer.tokens("A" * 20_000, special=False)
before, peak = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(6):
    n_tokens = len(tokenizer.tokens("A" * n, special=False))
print(n_tokens)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak, resident() - before)
"""


def test_runs_at_the_limit_take_little_memory_and_give_it_back(gguf: Path, tmp_path: Path) -> None:
    path = write_vocab(tmp_path / "model.gguf", gguf, pre="gpt-4o")
    command = [sys.executable, "-c", _MEASURING_CHILD, str(path), str(MOST_RUN)]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=170, check=True)
    n_tokens, peak_kib, kept = map(int, child.stdout.split())
    assert n_tokens == MOST_RUN // 8, "the vocabulary has a token of eight"
    assert peak_kib < 40_000
    assert kept < 24 << 20, "one stack may be kept until the next is made; six would be 60 MB"


# -- long texts


def texts(seed: int, n: int) -> Iterator[str]:
    """Texts in which words, lines and what pre-tokenizers know stand side by side in any order."""
    rng = random.Random(seed)
    atoms = [*"x7/-_\n\t中。é½", "ab", "Cd", " e", " F", "12345", "...", "  ", " \n", "\n\n", "\r\n", "'s"]
    atoms += ["\u0301", "\u00a0", "\U0001f600"]
    for _ in range(n):
        yield "".join(rng.choice(atoms) for _ in range(rng.randint(1, 80)))


@pytest.mark.parametrize("pre", [*LOOPS, *SOME, "superbpe", "deepseek-v3", "tiny_aya"])
def test_a_text_in_pieces_has_the_tokens_of_the_whole(of_pre: Callable[[str], Vocab], pre: str) -> None:
    vocab = of_pre(pre)
    assert vocab.parts_words and vocab.parts_lines
    cut, whole = Tokenizer(vocab, piece=1), Tokenizer(vocab)
    for text in texts(1, 100):
        assert cut.tokens(text, special=False) == whole.tokens(text, special=False), text
        assert cut.tokens(text + "<|im_end|>", special=True) == whole.tokens(text + "<|im_end|>", special=True), text


_BEST_FIRST = ["\u2581the", "he", "th", "\u2581a", "the", "ab", "\u2581\u2581", "ing", "in"]
PIECES = {piece: -float(place) for place, piece in enumerate(_BEST_FIRST)}


def test_a_sentencepiece_text_in_pieces_gains_no_spaces(tmp_path: Path, vocabulary: Open) -> None:
    vocab = vocabulary(write_model(tmp_path / "sp.gguf", sentencepiece_meta(PIECES)), "default")
    cut, whole = Tokenizer(vocab, piece=1), Tokenizer(vocab)
    for text in [*texts(2, 200), "the abbing the\nthing", "a a a a", " the"]:
        tokens = whole.tokens(text, special=False)
        assert cut.tokens(text, special=False) == tokens, text
        assert b"".join(map(vocab.piece, tokens)).decode() == f" {text}", "one space in front, as the vocabulary wants"


def test_sentencepiece_text_that_goes_on_from_other_text_gains_no_space(tmp_path: Path, vocabulary: Open) -> None:
    vocab = vocabulary(write_model(tmp_path / "sp.gguf", sentencepiece_meta(PIECES)), "default")
    tokenizer = Tokenizer(vocab)
    (end,) = tokenizer.tokens("</s>", special=True)
    first = tokenizer.tokens("the", special=False)
    for text in ("a", " the thing", "\n", "\x01", "ing</s>a"):
        more = tokenizer.tokens(text, special=False, after=first[-1])
        assert b"".join(map(vocab.piece, [*first, *more])).decode() == f" the{text}"
    assert tokenizer.tokens("the", special=True, after=end) == first, "behind a control token as at the start"
    assert tokenizer.tokens("</s>the", special=True, after=first[-1]) == [end, *first]
    assert tokenizer.tokens("</s>the</s>", special=True) == [end, *first, end]


def test_names_do_not_grow_together_to_control_tokens(tmp_path: Path, vocabulary: Open) -> None:
    merges = {"</s": 9, "s>": 8, "</": 7, "<|im": 6, "_end|>": 5, "_end": 4, "|>": 3}
    names = {"<|im_end|>": CONTROL, "x</s>": CONTROL, "s>a": CONTROL}
    meta = sentencepiece_meta({**PIECES, **merges, **dict.fromkeys("<>/|_", -9)}, names)
    vocab = vocabulary(write_model(tmp_path / "sp.gguf", meta), "default")
    assert {"</s>", "<|im_end|>", "<unk>", "x</s>"} < set(vocab.control_names)
    tokenizer = Tokenizer(vocab)
    for text in ("</s>", "the </s> the", "<|im_end|>", "</s></s>", "x</s>a", "a<s>b</s>a", "<unk>", "s>as>a"):
        tokens = tokenizer.tokens(text, special=False)
        assert vocab.controls.isdisjoint(tokens)
        assert b"".join(map(vocab.piece, tokens)).decode() == f" {text}", "no text is lost, and no space is gained"
        assert not vocab.controls.isdisjoint(tokenizer.tokens(text, special=True))


def test_text_is_not_cut_where_a_token_reaches_over(tmp_path: Path, vocabulary: Open) -> None:
    meta = sentencepiece_meta({**PIECES, "e\u2581a": 10, "\nthe": 11})
    vocab = vocabulary(write_model(tmp_path / "sp.gguf", meta), "default")
    assert not vocab.parts_words and not vocab.parts_lines
    cut, whole = Tokenizer(vocab, piece=1), Tokenizer(vocab)
    for text in ("the a the a", "the\nthe\nthe a"):
        assert cut.tokens(text, special=False) == whole.tokens(text, special=False)


def test_a_text_that_is_far_too_long_is_refused_at_once(of_pre: Callable[[str], Vocab]) -> None:
    tokenizer = Tokenizer(of_pre("smollm"))
    tokenizer.tokens("once", special=False)
    for text in ("a word and " * 400_000, " " * 4_000_000, "1" * 4_000_000):
        with at_most(0.5), pytest.raises(ContextTooLong, match="more than 1024 tokens"):
            tokenizer.tokens(text, special=False, limit=1024)
    assert len(tokenizer.tokens("1" * 1024, special=False, limit=1024)) == 1024
    with pytest.raises(ContextTooLong):
        tokenizer.tokens("1" * 1025, special=False, limit=1024)


def test_a_text_that_cannot_be_cut_is_bounded_too(of_pre: Callable[[str], Vocab]) -> None:
    with pytest.raises(BadRequest, match=str(MOST_UNCUT)) as refused:
        Tokenizer(of_pre("qwen2")).tokens("a1" * MOST_UNCUT, special=False)
    assert "line breaks" in refused.value.hint


# -- vocabularies that would end the process


def test_a_vocabulary_without_byte_tokens_is_refused(tmp_path: Path, vocabulary: Open) -> None:
    meta = sentencepiece_meta(PIECES)
    tokens = meta["tokenizer.ggml.tokens"][1][1]
    tokens[tokens.index("<0xC3>")] = "<nothing>"
    with pytest.raises(ModelUnreadable, match="0xC3"):
        vocabulary(write_model(tmp_path / "sp.gguf", meta), "default")


def test_a_pre_tokenizer_that_asserts_is_refused(of_pre: Callable[[str], Vocab]) -> None:
    with pytest.raises(ModelUnreadable, match="embeddings"):
        of_pre("whitespace")


def test_a_model_without_a_vocabulary_is_refused(tmp_path: Path, vocabulary: Open) -> None:
    meta: Meta = {"general.architecture": (TEXT, "llama"), "tokenizer.ggml.model": (TEXT, "no_vocab")}
    with pytest.raises(ModelUnreadable, match="no vocabulary"):
        vocabulary(write_model(tmp_path / "none.gguf", meta), "default")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"llama.attention.causal": (BOOL, False), "llama.pooling_type": (U32, 4)}, "ranks texts"),
        ({"tokenizer.ggml.model": (TEXT, "no_vocab")}, "has no vocabulary"),
    ],
)
def test_a_model_that_writes_no_text_is_refused_with_what_to_do(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Meta, why: str
) -> None:
    monkeypatch.setattr(model, "load_model", functools.partial(load_model, vocab_only=True))
    path = write_model(tmp_path / "model.gguf", {**read_meta(gguf), **change})
    with pytest.raises(ModelUnreadable, match=f"model.gguf cannot be served: .*{why}") as refused:
        LlamaModel(path)
    assert "--model" in refused.value.hint and "doctor" in refused.value.hint


def test_the_longest_token_is_known(tmp_path: Path, of_pre: Callable[[str], Vocab], vocabulary: Open) -> None:
    assert of_pre("smollm").most_bytes == 81, "a newline and 80 spaces"
    name = "<a name of thirty-six characters...>"
    meta = sentencepiece_meta(PIECES, {name: USER_DEFINED})
    assert vocabulary(write_model(tmp_path / "sp.gguf", meta), "default").most_bytes == len(name)
    assert meta["tokenizer.ggml.tokens"][0] == LIST


_STARVED_CHILD = """
import os, resource, sys
from pathlib import Path
from llmaas.engine.llama.lib import load_model
from llmaas.engine.llama.tokenizer import MOST_UNCUT, Tokenizer
from llmaas.engine.llama.vocab import Vocab
tokenizer = Tokenizer(Vocab(load_model(Path(sys.argv[1]), vocab_only=True), "smollm"))
tokenizer.tokens("A" * 1000, special=False)
for text in ("x" * MOST_UNCUT, "\\u6f22" * 100_000, "\\U0001f600" * 100_000, "ab 1." * 20_000, "some words " * 9_000):
    for mib in (0, 1, 2, 4, 8, 16, 24, 40, 64, 96):
        child = os.fork()
        if not child:
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + (mib << 20), resource.RLIM_INFINITY))
            try:
                os._exit(3 if tokenizer.tokens(text, special=False) else 4)
            except MemoryError:
                os._exit(5)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_where_there_is_no_memory_a_text_is_refused_and_the_process_lives(gguf: Path, tmp_path: Path) -> None:
    path = write_vocab(tmp_path / "model.gguf", gguf, pre="smollm")
    child = subprocess.run(
        [sys.executable, "-c", _STARVED_CHILD, str(path)], capture_output=True, text=True, timeout=170
    )
    found = child.stdout.split()
    assert len(found) == 50 and set(found) == {"3", "5"}, (found, child.stderr[-300:])
