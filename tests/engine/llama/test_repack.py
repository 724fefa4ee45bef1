"""When a model gets a second copy of its weights, and how that is measured."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import pytest

from llmaas.engine.llama import repack, repack_measure
from llmaas.engine.llama.context import ContextSettings, working_memory
from llmaas.engine.llama.lib import collect_lines, load_model
from llmaas.engine.llama.memory_use import can_copy, cell_bytes, copied_bytes, device_bytes, output_bytes, working_bytes
from llmaas.engine.llama.repack import BothPaces, Memo, Pace, choose, key_of
from llmaas.engine.llama.repack_measure import RepackMeasurement, measure, parse

LINES = [
    "load_tensors:   CPU_Mapped model buffer size =  1059.89 MiB",
    "load_tensors:   CPU_REPACK model buffer size =   596.50 MiB",
    "llama_context:        CPU  output buffer size =     6.50 MiB",
    "sched_reserve:        CPU compute buffer size =     7.00 MiB",
    "llama_kv_cache:        CPU KV buffer size =    22.50 MiB",
]
TWICE = BothPaces(Pace(20, 10), Pace(10, 10))
EQUAL = BothPaces(Pace(10, 12), Pace(11, 10))


def test_sizes_of_buffers_are_those_that_llama_cpp_logs() -> None:
    assert copied_bytes(LINES) == int(596.5 * (1 << 20))
    assert working_bytes(LINES) == int(13.5 * (1 << 20))
    assert output_bytes(LINES) == int(6.5 * (1 << 20))
    devices = [*LINES, "x: Vulkan0 model buffer size = 8.00 MiB"]
    devices += ["x: Vulkan0 compute buffer size = 2.00 MiB", "x: Vulkan_Host compute buffer size = 1.00 MiB"]
    assert copied_bytes(devices, ["Vulkan0"]) == copied_bytes(LINES), "what is on a device takes no RAM"
    assert working_bytes(devices, ["Vulkan0"]) == working_bytes(LINES) + (1 << 20)
    assert device_bytes(devices, ["Vulkan0", "Vulkan1"]) == {"Vulkan0": 10 << 20}
    assert can_copy(LINES) and not can_copy(LINES[:1] + LINES[2:])


def test_cells_are_where_their_layers_are() -> None:
    places = ["CPU", "Vulkan0", "Vulkan0", "Vulkan1", "Vulkan0"]
    lines = [f"load_tensors: layer   {i} assigned to device {name}, is_swa = 0" for i, name in enumerate(places)]
    lines += [
        "llama_kv_cache: size =   22.50 MiB (  1024 cells,  30 layers",
        "llama_kv_cache: size =    1.50 MiB (  64",
    ]
    assert cell_bytes(lines, ["Vulkan0", "Vulkan1"]) == {"Vulkan0": 12 << 20, "Vulkan1": 6 << 20}
    assert not cell_bytes(lines, []) and not cell_bytes([], ["Vulkan0"])


def test_a_copy_pays_if_prompts_and_single_tokens_gain_together() -> None:
    assert TWICE.pays and not EQUAL.pays
    assert not BothPaces(Pace(40, 24), Pace(60, 19)).pays, "what one gains the other loses"


def test_the_setting_decides_without_a_look_at_the_model(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "memo")
    assert choose(tmp_path / "none", "on", memo).copied
    assert not choose(tmp_path / "none", "off", memo).copied


def test_auto_makes_no_copy_of_weights_that_have_no_other_order(gguf: Path, tmp_path: Path) -> None:
    choice = choose(gguf, "auto", Memo(tmp_path / "memo"))
    assert (choice.copied, choice.open) == (False, False)
    assert list(tmp_path.iterdir()) == []


def test_auto_is_open_until_it_is_measured(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repack, "copyable", lambda _: True)
    memo = Memo(tmp_path / "memo")
    choice = choose(gguf, "auto", memo)
    assert (choice.copied, choice.open) == (False, True)
    for found in (TWICE, EQUAL):
        memo.keep(key_of(gguf), "m.gguf", found)
        choice = choose(gguf, "auto", Memo(tmp_path / "memo"))
        assert (choice.copied, choice.open) == (found.pays, False)
        assert "measured on this CPU" in choice.reason


def test_another_cpu_build_or_model_is_measured_anew(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {key_of(gguf)}
    with monkeypatch.context() as changed:
        changed.setattr(repack, "build", lambda: "another")
        keys.add(key_of(gguf))
    with monkeypatch.context() as changed:
        changed.setattr(repack, "cpu_text", lambda: "another")
        keys.add(key_of(gguf))
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    assert len(keys | {key_of(other)}) == 4
    assert key_of(gguf) in keys


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"k": 1}', '{"k": {"copied": [1.0, 0.0], "plain": [1.0, 1.0]}}', "\xff"]
)
def test_a_damaged_memo_is_an_empty_one(tmp_path: Path, content: str) -> None:
    memo = Memo(tmp_path / "memo")
    (tmp_path / "memo").write_bytes(content.encode("latin-1"))
    assert memo.find("k") is None
    memo.keep("k", "m.gguf", TWICE)
    assert memo.find("k") == TWICE


def test_a_memo_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Memo(tmp_path / "none" / "memo").keep("k", "m.gguf", TWICE)
    assert "measured again" in caplog.text


def test_a_memo_keeps_the_newest(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "memo")
    for i in range(70):
        memo.keep(str(i), "m.gguf", TWICE)
    assert memo.find("5") is None and memo.find("69") == TWICE


@pytest.mark.parametrize(
    "output", ["", "{}", "[]", "[1, 2]", "[[1, 2], [3]]", "[[0, 1], [1, 1]]", "[[1, null], [1, 1]]"]
)
def test_what_is_no_result_is_refused(output: str) -> None:
    with pytest.raises(ValueError):
        parse(output)


def test_both_ways_are_measured(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PASSES", "ROUNDS", "STEPS"):
        monkeypatch.setattr(repack_measure, name, 1)
    found = measure(gguf)
    assert min(*found.copied, *found.plain) > 0


def test_working_memory_is_what_llama_cpp_says_of_its_buffers(gguf: Path) -> None:
    few, many = (working_memory(gguf, ContextSettings(256, n, 1, 64, 64, "f16")).working for n in (2, 32))
    assert many - few >= 30 * 49_152 * 4, "logits of 30 more sequences"


def test_lines_are_collected_by_each_of_nested_blocks(gguf: Path) -> None:
    with collect_lines() as outer:
        with collect_lines() as inner:
            load_model(gguf, vocab_only=True)
        n = len(inner)
    assert n and outer == inner


# -- the process


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have ``script`` run instead of the measuring process."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n", "ascii")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", os.fspath(program))


def test_a_result_is_kept(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(tmp_path, monkeypatch, "echo '[[20, 10], [10, 10]]'")
    memo = Memo(tmp_path / "memo")
    with caplog.at_level(logging.INFO):
        RepackMeasurement(gguf, memo).wait()
    assert memo.find(key_of(gguf)) == TWICE
    assert "pays: the next start makes it" in caplog.text


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo first >&2; echo 'no memory' >&2; exit 1", "no memory"),
        ("kill -9 $$", "signal 9"),
        ("echo nonsense", "no result"),
        ("exit 3", "status 3"),
        ("exec sleep 60", "more than 0 s"),
    ],
)
def test_a_measurement_that_fails_is_told_and_not_kept(
    gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: str,
    reason: str,
) -> None:
    stand_in(tmp_path, monkeypatch, script)
    memo = Memo(tmp_path / "memo")
    RepackMeasurement(gguf, memo, limit_s=0.3 if "sleep" in script else 60).wait()
    assert "so none is made" in caplog.text and reason in caplog.text
    assert memo.find(key_of(gguf)) is None


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="only Linux has it")
def test_it_gives_way_to_all_that_computes_before_it_imports_anything_large(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "numpy").mkdir()
    told = "import os, sys; sys.exit(f'scheduled as {os.sched_getscheduler(0)}')"
    (tmp_path / "numpy" / "__init__.py").write_text(told)
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path), prepend=os.pathsep)
    RepackMeasurement(gguf, Memo(tmp_path / "memo")).wait()
    assert f"scheduled as {os.SCHED_IDLE}" in caplog.text


def test_a_process_that_cannot_be_started_is_told(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", os.fspath(tmp_path / "none"))
    measurement = RepackMeasurement(gguf, Memo(tmp_path / "memo"))
    measurement.wait()
    measurement.close()
    assert "so none is made" in caplog.text


def test_a_daemon_that_stops_ends_its_measurement_quietly(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(tmp_path, monkeypatch, "exec sleep 60")
    began = time.monotonic()
    RepackMeasurement(gguf, Memo(tmp_path / "memo")).close()
    assert time.monotonic() - began < 10
    assert caplog.text == ""
