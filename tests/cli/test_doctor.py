"""The doctor's checks, each with what it must find."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmaas.cli import engine_choices
from llmaas.cli.doctor.checks import check_config, check_engine, check_installation, examine
from llmaas.cli.doctor.daemon import check_socket, duty_findings
from llmaas.cli.doctor.finding import Finding
from llmaas.cli.doctor.host import check_host
from llmaas.cli.doctor.model import (
    chat_finding,
    check_model,
    kv_findings,
    memory_findings,
    memory_parts,
    repack_finding,
)
from llmaas.cli.doctor.profile import profile_finding
from llmaas.cli.doctor.store import check_disk, check_flash, check_store
from llmaas.cli.engine_choices import measure_repack
from llmaas.cli.machine import Ram
from llmaas.config.boards import Board, BoardKind
from llmaas.config.profiles import Hardware
from llmaas.config.settings import Config
from llmaas.config.sources import load
from llmaas.engine.llama.repack import RepackChoice
from llmaas.host import flash
from llmaas.kvchunks.store.store import ContextRow, MasterKey, Span, Store
from llmaas.native import LIBRARIES, missing_libraries
from llmaas.policies import duty
from llmaas.records import NO_QUOTA, AppId, ChunkKey, ContextId, Geometry, ModelInfo, StateSize

INFO = ModelInfo("m", "f", "v", Geometry(30, 192, 192, 64, 64), 8192, 49152, 92 << 20)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    flags = {"data_dir": str(tmp_path / "data"), "socket": str(tmp_path / "d.sock")}
    return load(flags, {"HOME": str(tmp_path)}).config


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def store_lines(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.about == "store"]


def test_strange_variables_are_a_warning(config: Config, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "LLMAAS_CELL": "5"}
    findings = list(check_config(load({}, environ), environ))
    assert levels(findings) == ["ok", "warn"]
    assert findings[1].hint == "Did you mean LLMAAS_CELLS?"


def test_the_profile_is_named_with_why_and_with_what_holds_of_it(tmp_path: Path) -> None:
    def told(machine: Hardware, **flags: str) -> str:
        finding = profile_finding(load(flags, {"HOME": str(tmp_path)}, machine=machine))
        assert (finding.about, finding.level) == ("profile", "ok")
        return finding.text

    assert told(Hardware(Board(), 16 << 30)) == (
        "desktop (chosen by itself: no phone or board that is known, 16.0 GiB of RAM)"
    )
    pi = Hardware(Board(BoardKind.PI, "Raspberry Pi 4 Model B"), 2 << 30)
    assert told(pi, cells="300") == (
        "pi-8g (chosen by itself: a Raspberry Pi (Raspberry Pi 4 Model B), 2.0 GiB of RAM); "
        "it is for 8.0 GiB of RAM: 1/4 of its cells and pool_bytes; set otherwise: cells"
    )
    assert told(Hardware(), profile="phone-4g") == "phone-4g (flag --profile)"


def test_flash_that_wears_soon_is_a_warning_unless_there_is_a_budget(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(flash, "weak_flash", lambda folder, root: "an SD card" if folder == tmp_path else "")
    data_dir = tmp_path / "not" / "yet"
    (finding,) = check_flash(data_dir, None)
    assert finding.level == "warn" and "is on an SD card" in finding.text and "wear_budget" in finding.hint
    (finding,) = check_flash(data_dir, 1 << 30)
    assert finding.level == "ok" and finding.text == "on an SD card; wear_budget: 1G a day"
    (finding,) = check_flash(data_dir, NO_QUOTA)
    assert finding.level == "ok" and finding.text.endswith("none a day"), "so the operator said"
    assert not list(check_flash(tmp_path.parent, None))


def test_the_engine_is_found() -> None:
    (finding,) = check_engine()
    assert finding.level == "ok"
    assert "0.3.36" in finding.text


def test_a_whole_installation_is_not_mentioned() -> None:
    assert list(check_installation()) == []


def test_a_wheel_without_its_c_libraries_is_a_warning(tmp_path: Path) -> None:
    (finding,) = check_installation(missing_libraries(tmp_path))
    assert finding.level == "warn"
    n = len(LIBRARIES)
    assert finding.text.startswith(f"{n} of {n} C libraries are missing: chunks are coded by numpy")
    (finding,) = check_installation(["engine/llama/_steps"])
    assert finding.text == f"1 of {n} C libraries are missing: small models answer some percent slower"


def test_a_client_over_the_daemon_is_a_warning() -> None:
    (finding,) = check_installation([], "0.0.9")
    assert "llmaas-client 0.0.9 is installed, too" in finding.text


def test_the_packaged_model_is_loaded_and_measured(config: Config, model_path: Path) -> None:
    findings = list(check_model(config))
    assert levels(findings) == ["ok"] * 6
    assert "the model's own chat template" in findings[1].text
    assert "30 layers, K 192 and V 192 values: 22.5 KiB a token" in findings[2].text
    assert findings[-2].text.startswith("no second copy of weights")


def test_a_chat_template_that_is_not_in_use_is_told_why() -> None:
    finding = chat_finding(replace(INFO, chat_note="the model has no chat template: plain ChatML is used"))
    assert finding.level == "warn" and "ChatML" in finding.text and "another GGUF" in finding.hint


def test_what_cannot_be_known_is_a_finding_and_the_rest_goes_on(config: Config, tmp_path: Path) -> None:
    loaded = load({"model": str(tmp_path / "none.gguf"), "data_dir": str(tmp_path / "data")}, {"HOME": str(tmp_path)})
    findings = {f.about: f for f in examine(loaded, {}, deep=False, repair=False)}
    assert findings["model"].level == "fail"
    assert "there is no model file" in findings["model"].text
    assert findings["socket"].level == "ok"


def test_a_model_that_cannot_be_chunked_is_told_why(config: Config) -> None:
    findings = list(kv_findings(config, replace(INFO, chunkable=False, note="it is recurrent")))
    assert levels(findings) == ["warn", "ok"]
    assert "it is recurrent" in findings[0].text


def test_how_contexts_are_kept_is_told(config: Config) -> None:
    assert "contexts are chunked" in next(kv_findings(config, INFO)).text
    state = StateSize(fixed=3 << 20, token=4096)
    info = replace(INFO, chunkable=False, note="it is recurrent", state=state)
    first, second = kv_findings(config, info)
    assert first.level == second.level == "ok"
    for part in ("checkpointed", "3.0 MiB and 4.0 KiB for each token", "it is recurrent"):
        assert part in first.text
    parts = memory_parts(config, info, 0, 0)
    assert parts["in flight"] > 4 * state.of(config.cells)
    assert parts["cells"] == config.cells * 4096
    windows = replace(state, window=512, window_token=10_000)
    only = replace(config, full_windows=False, sequences=4)
    told = next(kv_findings(only, replace(info, state=windows))).text
    assert "for each token and 9.8 KiB for each of the last 512" in told
    n_window = 2560 + 512  # of five sequences, and of a step
    assert memory_parts(only, replace(info, state=windows), 0, 0)["cells"] == config.cells * 4096 + n_window * 10_000
    too_small = list(kv_findings(replace(config, pool_bytes=state.of(config.cells) - 1), info))
    assert levels(too_small) == ["ok", "warn", "ok"] and "--pool-bytes" in too_small[1].hint


def test_budgets_beyond_the_machine_fail(config: Config) -> None:
    (finding,) = memory_findings(config, memory_parts(replace(config, pool_bytes=1 << 50), INFO, 0, 0))
    assert finding.level == "fail"
    assert "--pool-bytes" in finding.hint
    (finding,) = memory_findings(config, memory_parts(config, INFO, 0, 13 << 20))
    assert "model 92.0 MiB, cells 180.0 MiB, pool 256.0 MiB, computing 13.0 MiB" in finding.text


def test_a_large_vocabulary_and_large_chunks_count(config: Config) -> None:
    small = sum(memory_parts(config, INFO, 0, 0).values())
    larger = sum(memory_parts(config, replace(INFO, n_vocab=INFO.n_vocab + 100_000), 0, 0).values())
    assert larger - small == 51_200_000
    parts = memory_parts(config, INFO, 0, 0)
    assert parts["in flight"] > 16 * 64 * INFO.geometry.token_bytes


def test_the_doctor_tells_whether_weights_are_copied_and_why(config: Config) -> None:
    finding = repack_finding(RepackChoice(False, "repack = off"))
    assert (finding.level, finding.text) == ("ok", "no second copy of weights: repack = off")
    assert repack_finding(RepackChoice(True, "x")).text.startswith("a second copy")


def test_a_second_copy_of_weights_counts(config: Config) -> None:
    one, two = (sum(memory_parts(config, INFO, copied, 0).values()) for copied in (0, 600 << 20))
    assert two - one == 600 << 20


def test_a_data_directory_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    (finding,) = check_disk(tmp_path / "data")
    assert finding.level == "fail"
    (finding,) = check_disk(tmp_path / "data" / "below")
    assert finding.level == "fail"


def test_a_data_directory_open_to_others_is_a_warning(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    assert levels(list(check_disk(data)))[-1] == "warn"
    data.chmod(0o700)
    assert "others" not in "".join(finding.text for finding in check_disk(data))


def test_a_store_that_is_not_there_is_not_made(config: Config) -> None:
    (finding,) = check_store(config, {}, deep=True, repair=True)
    assert finding.level == "ok"
    assert not config.data_dir.exists()


def test_a_sound_store_is_ok_and_what_is_wrong_with_one_is_found_and_repaired(config: Config) -> None:
    Store(config.data_dir).close()
    assert levels(list(check_store(config, {}, deep=True, repair=False))) == ["ok", "ok"]
    (config.data_dir / "index.sqlite").chmod(0o644)
    found = store_lines(check_store(config, {}, deep=True, repair=False))
    assert levels(found) == ["fail"]
    assert "--repair" in found[0].hint
    repaired = store_lines(check_store(config, {}, deep=True, repair=True))
    assert levels(repaired) == ["warn", "ok"]
    assert repaired[0].text == f"{found[0].text}; closed to others"
    assert levels(store_lines(check_store(config, {}, deep=True, repair=False))) == ["ok"]


def test_the_doctor_tells_the_cipher_the_masters_place_and_whether_it_fits(config: Config) -> None:
    key, other = {"LLMAAS_MASTER_KEY": "0" * 64}, {"LLMAAS_MASTER_KEY": "1" * 64}
    with Store(config.data_dir, master=MasterKey(bytes(32))) as store:
        store.put(ContextId("a"), [(ChunkKey(bytes(16)), 64, b"chunk")])

    def ciphers(config: Config, environ: dict[str, str]) -> list[Finding]:
        return [f for f in check_store(config, environ, deep=True, repair=True) if f.about == "cipher"]

    (fits,) = ciphers(config, key)
    assert fits.level == "ok" and "variable LLMAAS_MASTER_KEY; it opens 1 of the 1 keys" in fits.text
    told, locked = ciphers(config, other)
    assert "it opens 0 of the 1 keys" in told.text
    assert locked.level == "warn" and "1 chunks cannot be opened" in locked.text
    assert levels(ciphers(replace(config, encrypt=False), key)) == ["warn", "warn"]
    assert len(ciphers(config, key)) == 1, "a repair under a wrong key dropped nothing"


def test_the_doctor_says_what_conversations_in_clear_or_without_their_key_need(config: Config) -> None:
    with Store(config.data_dir) as store:
        store.create_context(*conversation(1))
    (_, clear) = [f for f in check_store(config, {}, deep=True, repair=False) if f.about == "cipher"]
    assert clear.level == "warn" and "1 conversations are on disk in clear" in clear.text
    key, other = {"LLMAAS_MASTER_KEY": "0" * 64}, {"LLMAAS_MASTER_KEY": "1" * 64}
    found = list(check_store(config, key, deep=True, repair=False))
    assert set(levels(found)) == {"ok"} and "1 of 1 conversations are encrypted" in found[-1].text
    for wrong in (config, replace(config, encrypt=False)):
        for repair in (False, True):
            *_, locked = check_store(wrong, other, deep=True, repair=repair)
            assert (locked.about, locked.level) == ("store", "fail") and "encrypted" in locked.text
            assert "Put the key back" in locked.hint
    assert set(levels(list(check_store(config, key, deep=True, repair=True)))) == {"ok"}


def chunk(i: int) -> tuple[ChunkKey, int, bytes]:
    return ChunkKey(bytes([i]) * 16), 64, bytes([i]) * 5000


def conversation(i: int) -> tuple[ContextRow, list[Span]]:
    row = ContextRow(ContextId(f"{i}"), AppId("1000/mail"), f"letter {i}", "m", "v", 1.0, 1.0, 0)
    return row, [Span(tuple(range(300)), "user", "word " * 100)]


@pytest.fixture
def stored(config: Config) -> Path:
    """A store of 200 conversations and 8 chunks in two files; its folder."""
    with Store(config.data_dir) as store:
        for i in range(200):
            store.create_context(*conversation(i))
        store.put(ContextId("0"), [chunk(i) for i in range(4)])
        store.put(ContextId("1"), [chunk(i) for i in range(4, 8)])
    return config.data_dir


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def texts(findings: Iterable[Finding]) -> str:
    return "\n".join(finding.text for finding in findings)


def test_repair_says_what_was_found_what_was_done_and_what_it_means(config: Config, stored: Path) -> None:
    flip(stored / "payload" / "00000001.kv", 7)
    flip(stored / "payload" / "00000001.kv", 5007)
    flip(stored / "payload" / "00000002.kv", 7)
    (stored / "payload" / "notes.txt").write_text("not ours")
    (stored / "payload" / "notes.txt").chmod(0o600)
    con = sqlite3.connect(stored / "index.sqlite")
    con.execute("UPDATE contexts SET n_tokens = 7 WHERE id = '3'")
    con.commit()
    con.close()

    found = texts(check_store(config, {}, deep=True, repair=False))
    assert "chunks whose bytes are not those written: 3 (chunk 0000" in found
    assert "3 chunks to be dropped; their contexts will recompute about 192 tokens" in found
    assert "dropped;" not in found.replace("to be dropped;", "")

    done = store_lines(check_store(config, {}, deep=True, repair=True))
    assert levels(done) == ["warn"] * 4 + ["ok"]
    told = texts(done)
    assert "not those written: 3 (chunk 0000" in told and "; dropped" in told
    assert "3 chunks dropped; their contexts will recompute about 192 tokens" in told
    assert "no conversation was lost" in told
    assert "than they say: 1 (context 3: 300 tokens, but counted as 7); counted anew, no token touched" in told
    assert "strange files in the payload folder: 1" in told and "left alone" in told
    assert done[-1].text.startswith("200 contexts, 5 chunks")
    assert (stored / "payload" / "notes.txt").exists()


def test_damaged_rows_are_named_with_what_could_be_read(config: Config, stored: Path) -> None:
    con = sqlite3.connect(stored / "index.sqlite")
    con.execute("UPDATE spans SET text = 'other' WHERE id = 4")
    con.execute("UPDATE contexts SET vocab = 'w' WHERE id = '5'")
    con.execute("UPDATE contexts SET vocab = 'another' WHERE id = '6'")
    con.execute("UPDATE chunks SET k_bits = 99 WHERE key = ?", (chunk(7)[0],))
    con.commit()
    con.close()

    found = store_lines(check_store(config, {}, deep=True, repair=False))
    assert levels(found) == ["fail", "fail"]
    assert "chunks with impossible bits or measurements: 1" in found[0].text
    assert "rows that are not what was written: 3" in found[1].text
    done = store_lines(check_store(config, {}, deep=True, repair=True))
    told = texts(done)
    assert levels(done) == ["warn"] * 5 + ["ok"]
    assert "200 conversations taken from it into a new one, 199 of them whole" in told
    assert "context 'letter 3' of 1000/mail: 0 of 300 tokens could be read and are kept" in told
    assert "context 'letter 5' of 1000/mail: its row had damaged bits, which were put right; it is whole" in told
    assert "context 'letter 6' of 1000/mail: what is known of it besides its name was damaged; its 300" in told
    assert "forgotten; they are measured again" in told
    assert done[-1].text.startswith("200 contexts, 8 chunks, no problem")


def test_what_an_opening_drops_is_told(config: Config, stored: Path) -> None:
    (stored / "payload" / "00000002.kv").unlink()
    findings = store_lines(check_store(config, {}, deep=False, repair=False))
    assert levels(findings) == ["warn", "ok"]
    assert "cut short: 4; dropped" in findings[0].text
    assert findings[1].text.startswith("200 contexts, 4 chunks")


def test_a_damaged_index_gives_back_its_conversations_and_names_those_with_a_hole(config: Config, stored: Path) -> None:
    with (stored / "index.sqlite").open("r+b") as file:
        file.seek(60 * 4096)
        file.write(bytes(range(256)) * 16)
    (failed,) = store_lines(check_store(config, {}, deep=False, repair=False))
    assert failed.level == "fail" and "--repair" in failed.hint
    done = store_lines(check_store(config, {}, deep=False, repair=True))
    assert done[0].text.startswith("the index was damaged: moved to")
    assert "200 conversations taken from it into a new one" in done[0].text
    holes = [finding.text for finding in done if "could be read" in finding.text]
    assert 0 < len(holes) < 5 and f"{200 - len(holes)} of them whole" in done[0].text
    assert "of 1000/mail: 0 of 300 tokens could be read and are kept" in holes[0]
    assert done[-1].text.startswith("200 contexts, 8 chunks, no problem")


def test_a_store_that_another_process_has_open_fails_if_no_daemon_answers(config: Config, tmp_path: Path) -> None:
    loaded = load(
        {"data_dir": str(config.data_dir), "socket": str(config.socket), "model": "none"}, {"HOME": str(tmp_path)}
    )
    with Store(config.data_dir):
        findings = {f.about: f for f in examine(loaded, {}, deep=False, repair=True)}
        assert findings["store"].level == "fail"
        assert "in use" in findings["store"].text
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(config.socket))
            listener.listen()
            (finding,) = check_store(config, {}, deep=False, repair=False)
            assert (finding.level, finding.text.startswith("not checked")) == ("ok", True)


def test_an_index_beyond_reading_is_moved_aside_only_when_asked_for(config: Config, tmp_path: Path) -> None:
    Store(config.data_dir).close()
    (config.data_dir / "index.sqlite").write_bytes(b"garbage" * 1000)
    loaded = load({"data_dir": str(config.data_dir), "model": "none"}, {"HOME": str(tmp_path)})

    def store_findings(repair: bool) -> list[Finding]:
        return [f for f in examine(loaded, {}, deep=False, repair=repair) if f.about == "store"]

    assert levels(store_findings(repair=False)) == ["fail"]
    repaired = store_findings(repair=True)
    assert levels(repaired) == ["warn", "warn", "ok"]
    assert repaired[1].text == "nothing could be read: contexts start anew"
    assert list(config.data_dir.glob("index.sqlite.corrupt-*"))


def test_a_stale_socket_is_a_warning_and_a_file_in_its_place_fails(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    (finding,) = check_socket(path)
    assert (finding.level, "stale" in finding.text) == ("warn", True)
    path.unlink()
    path.write_text("x")
    (finding,) = check_socket(path)
    assert finding.level == "fail"


def test_the_doctor_says_what_threads_cpus_and_the_governor_come_to(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmaas.host.priority.autogroups", lambda: True)
    monkeypatch.setattr("llmaas.host.thermal.read", lambda: duty.ThermalReading(71.0, 95.0, "cpu", 0.8, 0.42, True))
    plain = list(check_host(replace(config, threads=2, cpus=(0, 1))))
    assert [(f.level, f.text) for f in plain] == [
        ("ok", "2 threads on CPUs 0-1, fewer while others need the cores; nice 0")
    ]
    found = list(check_host(replace(config, threads=3, cpus=(0, 1), nice=5, governor="on")))
    assert levels(found) == ["ok", "warn", "warn", "ok"]
    assert "3 threads share 2 CPUs" in found[1].text and "sessions" in found[2].text
    assert found[3].text == "cpu 71 C of 95 C; CPUs may run at 80% of their frequency; battery 42%, discharging"
    monkeypatch.setattr("llmaas.host.thermal.read", duty.ThermalReading)
    assert [f.level for f in check_host(replace(config, governor="on"))][-1] == "warn"


def test_a_daemon_that_computes_less_says_why() -> None:
    assert list(duty_findings({"watched": False})) == []
    (slowed,) = duty_findings({"watched": True, "duty": 0.4, "why": "heat"})
    assert (slowed.level, slowed.text) == ("warn", "the daemon computes 40% of the time, because of heat")


def test_a_copy_is_not_measured_without_memory_for_it(
    config: Config, model_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_choices, "ram", lambda: Ram(1 << 30, 60 << 20))
    assert measure_repack(config, model_path) is None
    assert "60 MB are free" in caplog.text
