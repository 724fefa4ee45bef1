"""Traces from public data, by small pieces in the data's own form."""

from __future__ import annotations

import json

import pytest

from llmaas.errors import BadRequest
from llmaas.traces import azure, chats, conversations, mooncake, unlocks

AZURE = ["TIMESTAMP,ContextTokens,GeneratedTokens"] + [
    f"2023-11-16 18:15:{s}.6805900,{n},44" for s, n in (("46", 374), ("47", 9000), ("50", 12))
]


def test_azures_times_are_kept_and_long_prompts_cut() -> None:
    calls = list(azure.read_azure(AZURE, pattern="turns", contexts=2, limit=1000))
    assert [call.t for call in calls] == [0.0, 1.0, 4.0]
    assert [call.prompt for call in calls] == [374, 500, 12]
    assert [call.context for call in calls] == ["c0.0", "c1.0", "c0.0"]


@pytest.mark.parametrize("line", ["x,1,2", "2023-11-16 18:15:46.68,many,2", "2023-11-16 18:15:46.68"])
def test_what_is_not_azures_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(BadRequest, match="line 3"):
        list(azure.read_azure([*AZURE[:2], line], pattern="random", contexts=2))


def request(t: int, tokens: int, ids: list[int], answer: int = 10) -> str:
    return json.dumps({"timestamp": t, "input_length": tokens, "output_length": answer, "hash_ids": ids})


def test_mooncakes_requests_go_on_with_contexts_and_share_prefixes() -> None:
    lines = [
        request(0, 1100, [0, 1, 2]),
        request(500, 1100, [0, 3, 4]),
        request(1000, 1600, [0, 1, 5, 6]),  # goes on with the first: its two full blocks, then more
        request(1500, 1600, [0, 1, 7, 8]),  # the same beginning, but the first has gone on: a new context
        request(2000, 600, [9, 10]),  # shares nothing
    ]
    calls = list(mooncake.read_mooncake(lines))
    assert [call.context for call in calls] == ["c0", "c1", "c0", "c2", "c3"]
    assert [call.prompt for call in calls] == [1100, 1100, 490, 1600, 600]
    assert [(call.prefix, call.prefix_tokens) for call in calls] == [
        ("block-0", 512),
        ("block-0", 512),
        ("", 0),
        ("block-0", 512),
        ("", 0),
    ]
    assert [call.t for call in calls] == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_mooncakes_lengths_can_be_scaled_and_what_is_too_long_is_left_out() -> None:
    lines = [request(0, 1024, [0, 1]), request(1, 1024, [0, 2]), request(2, 9000, list(range(3, 21)))]
    calls = list(mooncake.read_mooncake(lines, limit=400, scale=0.25))
    assert [(call.prompt, call.prefix_tokens) for call in calls] == [(256, 128), (256, 128)]


@pytest.mark.parametrize("line", ["[]", "{}", '{"timestamp": 1, "input_length": 2, "output_length": 3}', "x"])
def test_what_is_not_mooncakes_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(BadRequest, match="line 2"):
        list(mooncake.read_mooncake([request(0, 5, [0]), line]))


def test_unlocks_are_seconds_since_the_first_event() -> None:
    lines = ["time,screen_status", "100.5,0", "110,1", "111,3", "150,3", "160,2"]
    assert list(unlocks.read_unlocks(lines)) == [10.5, 49.5]
    with pytest.raises(BadRequest, match="line 2"):
        list(unlocks.read_unlocks(["time,status", "1,2"]))


def conversation(n_turns: int, **more: object) -> str:
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} " * 10} for i in range(n_turns)]
    return json.dumps({"id": "c", "app": "mail", "turns": turns} | more)


def test_a_conversation_begins_with_all_but_its_last_user_turns() -> None:
    (found,) = conversations.read_conversations([conversation(14, system="Be kind.")])
    assert found.begin.startswith("System: Be kind.\nUser: turn 0 ")
    assert "turn 5" in found.begin
    assert "turn 6" not in found.begin
    assert len(found.turns) == conversations.LAST_TURNS
    assert all(turn.endswith("Assistant:") for turn in found.turns)
    (short,) = conversations.read_conversations([conversation(1)])
    assert "turn 0" in short.begin
    assert len(short.turns) == 1


def test_conversations_are_called_in_the_pattern_until_they_are_full() -> None:
    found = conversations.read_conversations([conversation(12, id=f"c{i}", tokens_x=100) for i in range(3)])
    calls = list(conversations.make(found, "turns", 50, limit=256))
    begin, later = calls[:3], calls[3:]
    assert [call.generate for call in begin] == [0, 0, 0]
    assert [call.context for call in later[:4]] == ["c0", "c1", "c2", "c0"]
    assert all(call.text for call in calls)
    lengths = dict.fromkeys(("c0", "c1", "c2"), 0)
    for call in calls:
        lengths[call.context] += call.prompt + call.generate
    assert max(lengths.values()) <= 256
    assert 0 < len(later) < 50, "all of them were full before that"
    with pytest.raises(BadRequest, match="more than 16"):
        list(conversations.make(found, "turns", 5, limit=16))


@pytest.mark.parametrize("line", ["x", "[]", '{"id": 1, "app": "a"}', '{"id": 1, "app": "a", "turns": []}'])
def test_what_is_no_conversation_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(BadRequest, match="line 2"):
        conversations.read_conversations([conversation(2), line])


def chat(*said: tuple[str, str, str]) -> str:
    return json.dumps({"messages": [[{"sender": who, "text": text, "timestamp": t}] for who, text, t in said]})


def test_a_chat_is_a_context_whose_answers_take_the_time_that_they_took() -> None:
    lines = [
        chat(
            ("a", "hello there", "2018-05-16T08:31:15Z"),
            ("a", "how are you", "2018-05-16T08:31:25Z"),
            ("b", "I am fine, thank you", "2018-05-16T08:31:40Z"),
            ("a", "good", "2018-05-16T08:32:00Z"),
            ("b", "yes", "2018-05-16T08:32:10Z"),
            ("a", "are you still there?", "2018-05-26T08:32:00Z"),
        ),
        chat(("x", "early", "2018-05-17T01:00:00Z"), ("y", "bird", "2018-05-17T01:00:05Z")),
    ]
    calls = chats.read_chats(lines, chats=5)
    assert [(call.context, call.t) for call in calls] == [("chat2", 3600.0), ("chat1", 30685.0), ("chat1", 30720.0)]
    assert [(call.prompt, call.generate) for call in calls] == [(1, 1), (5, 5), (1, 1)]
    assert len(chats.read_chats(lines, chats=1)) == 2
    with pytest.raises(BadRequest, match="line 2"):
        chats.read_chats([lines[0], "{}"], chats=5)
