"""What every engine promises of sampling: seeds, penalties, log probabilities."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Engine, Undrawn
from llmaas.errors import BadRequest
from llmaas.service.logprobs import logprobs
from tests.contract.support import Logits, assert_close, feed, generate, text_tokens


def answer(engine: Engine, sampling: Sampling, n: int = 16) -> list[int]:
    engine.set_sampler(0, sampling)
    feed(engine, 0, text_tokens(engine, 12))
    tokens = generate(engine, 0, text_tokens(engine, 13)[-1], n)
    engine.drop(0, 0)
    return tokens


def test_greedy_answers_repeat(engine: Engine) -> None:
    assert answer(engine, Sampling()) == answer(engine, Sampling(seed=5))


def test_a_temperature_that_is_hardly_one_is_none(engine: Engine) -> None:
    for temperature in (1e-7, 1e-37, 1e-44, 5e-324):
        assert answer(engine, Sampling(temperature=temperature, seed=5)) == answer(engine, Sampling())


def test_the_least_and_the_greatest_penalties_are_numbers(engine: Engine) -> None:
    for value in (0.01, 10.0):
        extreme = Sampling(repeat_penalty=value, presence_penalty=-10.0, frequency_penalty=-10.0)
        assert len(answer(engine, extreme)) == len(answer(engine, replace(extreme, temperature=1e-3, seed=5))) == 16


def test_a_seed_fixes_the_answer_and_another_changes_it(engine: Engine) -> None:
    hot = [Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed) for seed in (7, 7, 8)]
    first, again, other = (answer(engine, sampling) for sampling in hot)
    assert first == again != other


def test_without_a_seed_answers_differ(engine: Engine) -> None:
    hot = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0)
    assert len({tuple(answer(engine, hot)) for _ in range(3)}) > 1


def test_an_answer_that_goes_on_in_another_sequence_keeps_its_sampler(engine: Engine) -> None:
    hot, text = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=7), text_tokens(engine, 13)
    whole = answer(engine, hot)
    engine.set_sampler(90, hot)
    feed(engine, 0, text[:12])
    begun = generate(engine, 0, text[-1], 8, sampler=90)
    engine.copy(0, 2, engine.length(0))
    engine.drop(0, 0)
    feed(engine, 3, text[:5])  # whatever else happens meanwhile
    engine.drop(3, 0)  # so that the answer's next cells are those that they were in the whole one
    assert begun + generate(engine, 2, begun[-1], 8, sampler=90) == whole
    engine.set_sampler(90, None)


HOT = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=7)
DIGITS = "root ::= [0-9]+"
PENALISED = replace(HOT, repeat_penalty=1.5, presence_penalty=2.0)


@pytest.mark.parametrize(
    "sampling",
    [HOT, PENALISED, replace(HOT, grammar=DIGITS), Sampling(grammar=DIGITS)],
    ids=["drawn", "penalised", "drawn by a grammar", "greedy by a grammar"],
)
def test_another_sampler_goes_on_from_what_an_answer_has(engine: Engine, sampling: Sampling) -> None:
    held = engine.check_sampling(sampling)
    whole, text = answer(engine, sampling), text_tokens(engine, 13)
    begun = whole[:6]
    engine.set_sampler(0, Sampling())
    feed(engine, 0, text[:12])
    for token in [text[-1], *begun[:-1]]:  # one by one, as they were
        engine.step([BatchItem(0, engine.length(0), [token], 0)])
    engine.set_sampler(0, sampling, (), begun)
    assert generate(engine, 0, begun[-1], 10) == whole[6:]
    engine.set_sampler(0, None)
    engine.drop(0, 0)
    del held


def test_an_answer_that_breaks_its_grammar_does_not_go_on(engine: Engine) -> None:
    sampling = Sampling(grammar=DIGITS)
    held, text = engine.check_sampling(sampling), text_tokens(engine, 13)
    engine.set_sampler(0, sampling, (), text[:2])
    feed(engine, 0, text[:12])
    (token,) = generate(engine, 0, text[-1], 1)
    assert engine.is_end(token)
    assert isinstance(engine.sampler_failure(0), BadRequest)
    engine.set_sampler(0, None)
    engine.drop(0, 0)
    del held


def test_neighbours_in_the_batch_do_not_change_a_seeded_answer(engine: Engine) -> None:
    hot = Sampling(temperature=0.7, seed=7, repeat_penalty=1.2)
    said, logits, neighbours = answer_beside(engine, hot, Sampling(temperature=1.0, seed=1), skip=40)
    assert answer_beside(engine, hot, Sampling(temperature=1.5, seed=2), skip=90)[0] == said
    alone = answer(engine, hot, 8)
    if engine.info.name == "fake":
        assert said == alone
    else:  # two in a batch round differently from one alone, and a draw can be as near as that
        text = text_tokens(engine, 13)
        feed(engine, 0, text[:12])
        engine.step([BatchItem(0, 12, text[12:], 0)])
        assert_close(engine, engine.logits(), logits, neighbours)


def answer_beside(engine: Engine, sampling: Sampling, other: Sampling, skip: int) -> tuple[list[int], Logits, Logits]:
    """An answer in sequence 0 while another one is drawn in the same steps, and the logits of both after the first."""
    for seq in (0, 1):
        engine.drop(seq, 0)
    text, neighbour = text_tokens(engine, 13), text_tokens(engine, 10, skip=skip)
    feed(engine, 0, text[:-1])
    feed(engine, 1, neighbour[:-1])
    engine.set_sampler(0, sampling)
    engine.set_sampler(1, other)
    items = [BatchItem(1, 9, neighbour[-1:], 1), BatchItem(0, 12, text[-1:], 0)]
    said, first = [], list[Logits]()
    for _ in range(8):
        drawn = [token for token in engine.step(items) if token is not None]
        first = first or [engine.logits(0), engine.logits(1)]
        items = [BatchItem(i.seq, i.pos + 1, [token], i.sampler) for i, token in zip(items, drawn, strict=True)]
        said.append(drawn[1])
    for seq in (0, 1):
        engine.drop(seq, 0)
    return said, first[1], first[0]


@pytest.mark.parametrize("penalty", ["repeat_penalty", "presence_penalty", "frequency_penalty"])
def test_penalties_change_a_greedy_answer_and_repeat(engine: Engine, penalty: str) -> None:
    strong = Sampling(**{penalty: 8.0, "penalty_last_n": 200})
    said = answer(engine, strong, 24)
    assert answer(engine, strong, 24) == said != answer(engine, Sampling(), 24)
    assert answer(engine, Sampling(**{penalty: 8.0, "penalty_last_n": 0}), 24) == answer(engine, Sampling(), 24)


def test_a_bias_makes_a_token_certain_or_impossible(engine: Engine) -> None:
    first = answer(engine, Sampling(), 4)
    assert first[0] not in answer(engine, Sampling(logit_bias=((first[0], -100.0),)), 4)
    token = text_tokens(engine, 3)[1]
    for temperature in (0.0, 1.0):
        biases = ((first[0], -100.0), (token, 100.0), (2**31 - 1, 5.0))
        assert answer(engine, Sampling(temperature=temperature, logit_bias=biases), 4) == [token] * 4


def test_penalties_look_at_the_tokens_before_the_answer(engine: Engine) -> None:
    (free,) = answer(engine, Sampling(), 1)
    strong = Sampling(presence_penalty=10.0, repeat_penalty=10.0)
    engine.set_sampler(0, strong, [free])
    feed(engine, 0, text_tokens(engine, 12))
    assert generate(engine, 0, text_tokens(engine, 13)[-1], 1) != [free]


def test_logprobs_are_of_each_item_and_sum_to_one(engine: Engine) -> None:
    engine.set_sampler(0, Sampling())
    engine.set_sampler(1, Sampling())
    texts = text_tokens(engine, 9), text_tokens(engine, 7, skip=20), text_tokens(engine, 3)
    drawn = engine.step([BatchItem(0, 0, texts[0], 0), BatchItem(2, 0, texts[2]), BatchItem(1, 0, texts[1], 1)])
    for item in (0, 2):
        token = drawn[item]
        assert token is not None
        found = logprobs(engine.logits(item), token, engine.info.n_vocab, engine.piece)
        assert sum(math.exp(each.logprob) for each in found.top) == pytest.approx(1.0, abs=1e-6)
        assert found.top[0].token == found.token == token and found.top[0].logprob == found.logprob < 0
        assert logprobs(engine.logits(item), token, 3, engine.piece).top == found.top[:3]
        assert logprobs(engine.logits(item), token, 0, engine.piece).top == ()
    with pytest.raises(ValueError, match="drew nothing"):
        engine.logits(1)


CONSTRAINED = {
    "grammar": Sampling(temperature=1.0, seed=3, grammar='root ::= "<" ("ab" | "cd") ", " root ">" | "."'),
    "json_schema": Sampling(temperature=1.0, seed=3, json_schema='{"items": {"enum": ["ab", 7]}, "minItems": 9}'),
}


@pytest.mark.parametrize("sampling", CONSTRAINED.values(), ids=CONSTRAINED)
def test_a_constrained_answer_that_goes_on_in_another_sequence_keeps_its_place(
    engine: Engine, sampling: Sampling
) -> None:
    engine.check_sampling(sampling)
    whole, text = answer(engine, sampling, 12), text_tokens(engine, 13)
    engine.set_sampler(90, sampling)
    feed(engine, 0, text[:12])
    begun = generate(engine, 0, text[-1], 6, sampler=90)
    engine.copy(0, 2, engine.length(0))
    engine.drop(0, 0)
    assert answer(engine, sampling, 3) == whole[:3], "another answer by the same constraint begins at its start"
    said = begun + generate(engine, 2, begun[-1], 6, sampler=90)
    assert said == whole and engine.sampler_failure(90) is None
    engine.set_sampler(90, None)


def test_a_constrained_answer_is_what_it_must_be_and_ends(engine: Engine) -> None:
    engine.set_sampler(0, Sampling(temperature=1.5, seed=1, grammar='root ::= "yes" | "no"'))
    feed(engine, 0, text_tokens(engine, 12))
    said, token = b"", text_tokens(engine, 13)[-1]
    for _ in range(5):
        (token,) = generate(engine, 0, token, 1)
        if engine.is_end(token):
            break
        said += engine.piece(token)
    assert said in (b"yes", b"no") and engine.is_end(token)


def test_what_takes_long_to_draw_is_drawn_over_several_brief_steps(engine: Engine) -> None:
    """It is what one step would have drawn, and until then the item's last token is computed again and again."""
    words = " | ".join(f'"{word}{n}"' for n in range(300) for word in ("sea", "storm", "snow"))
    sampling = Sampling(temperature=1.0, seed=4, grammar=f'root ::= ({words}) (", " root)?')
    whole, text = answer(engine, sampling, 8), text_tokens(engine, 13)
    engine.set_sampler(0, replace(sampling, grammar=f"{sampling.grammar} "))  # nothing is known of this grammar yet
    feed(engine, 0, text[:12])
    said, n_later, given = [text[-1]], 0, text[12:13]
    while len(said) <= 8:
        length = engine.length(0)
        (drawn,) = engine.step([BatchItem(0, length, given[-1:], 0)], draw_s=0.004)
        if drawn is Undrawn.LATER:
            n_later += 1
            assert engine.length(0) == length + len(given[-1:]) - 1
        else:
            assert isinstance(drawn, int)
            said.append(drawn)
            given = [drawn]
    assert said[1:] == whole and n_later > 3
    engine.drop(0, 0)


def test_a_draw_that_was_put_off_goes_with_its_sampler(engine: Engine) -> None:
    words = " | ".join(f'"x{n}"' for n in range(2000))
    text = text_tokens(engine, 2)
    engine.set_sampler(0, Sampling(grammar=f"root ::= {words}"))
    assert engine.step([BatchItem(0, 0, text[:1], 0)], draw_s=0.004) == [Undrawn.LATER]
    engine.set_sampler(0, Sampling(grammar='root ::= "yes"'))
    (token,) = generate(engine, 0, text[0], 1)
    assert engine.piece(token)[:1] == b"y"


def test_a_constraint_that_cannot_be_kept_to_is_refused_before_the_answer(engine: Engine) -> None:
    for bad in (Sampling(grammar="root ::= root"), Sampling(json_schema='{"not": {}}')):
        with pytest.raises(BadRequest):
            engine.check_sampling(bad)
        with pytest.raises(BadRequest):
            engine.set_sampler(91, bad)


def test_a_freed_sampler_draws_no_more(engine: Engine) -> None:
    engine.set_sampler(0, Sampling())
    engine.set_sampler(0, None)
    engine.set_sampler(0, None)
    with pytest.raises(ValueError, match="no sampler 0"):
        engine.step([BatchItem(0, 0, [65], 0)])
