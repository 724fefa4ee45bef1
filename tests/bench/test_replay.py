"""The bench that replays traces: its figures from rows, its journal, its report; and a run of it, small and real."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bench import results
from bench.lib.cli import Options, command_of
from bench.replay import (
    FULL,
    Plan,
    Replay,
    budget_of,
    figures_of,
    own_options,
    plan_of,
    rows_of,
    run_name,
    trace_of,
)
from bench.replaying.app import HearthApp
from bench.replaying.bars import answers_bar, bars, missing
from bench.replaying.compare import differs, moved
from bench.replaying.figures import ratio, same_answers, stream_figures, summary, tier, times
from bench.replaying.journal import Journal
from bench.replaying.meters import Reading, difference, energy
from bench.replaying.page import page
from bench.replaying.progress import Progress
from bench.replaying.run import STREAM_ANSWER
from bench.replaying.svg import Axis, plot
from bench.replaying.systems import DEFAULT, SYSTEMS, Budget
from bench.replaying.work import AGAIN_ANSWER, STREAM, Work, WorkCall, shortened, with_shared_beginning, work_of
from llmaas.engine.fake import FakeEngine
from llmaas.traces.call import TraceCall


def call_row(number: int, ttft: float, *, switches: bool = True, **more: Any) -> dict[str, Any]:
    row = {"run": "r", "row": "call", "number": number, "begins": False, "switches": switches, "n_new": 8}
    return {**row, "ttft_ms": ttft, "switch_ms": ttft / 10, "tokens": [number, 1], **more}


def run_rows(scale: float = 1.0) -> list[dict[str, Any]]:
    sources = [
        {"cells": 0, "pool": 10, "disk": 5, "recomputed": 0},
        {"cells": 0, "pool": 0, "disk": 9, "recomputed": 1},
    ]
    took = {"read_bytes": 10, "written_bytes": 100 * scale, "cpu_s": 1.0, "energy_j": None}
    return [
        {"run": "r", "row": "begin", "system": "llmaas", "program": {"flags": []}},
        call_row(0, 900, begins=True),
        call_row(1, 100 * scale, sources=sources[0]),
        call_row(2, 300 * scale, sources=sources[1]),
        call_row(3, 5, switches=False),
        {"run": "r", "row": "failed", "number": 4, "why": "refused"},
        {"run": "r", "row": "restart", "ttft_ms": 50.0 * scale, "number": 1},
        {"run": "r", "row": "end", "seconds": 3.0, "calls": took, "peak_anonymous": 7, "memory": [[0.0, 9, 7]]},
    ]


def test_calls_that_begin_a_context_or_stay_in_it_are_no_switches() -> None:
    found = summary(run_rows())
    assert found["ttft_ms"] == {"mean": 200, "p50": 200, "p90": 280, "p99": 298, "max": 300, "n": 2}
    assert found["ttft_same_ms"]["max"] == 5
    assert found["ttft_restart_ms"]["p50"] == 50
    assert found["calls"] == 3
    assert found["failed"] == 1
    assert {place: each["ttft_ms"]["max"] for place, each in found["tiers"].items()} == {"pool": 100, "disk": 300}


def test_what_a_program_does_not_tell_has_no_figure() -> None:
    assert times([None, None]) is None
    assert tier({"sources": None}) is None
    assert tier({"sources": dict.fromkeys(("cells", "pool", "disk", "recomputed"), 0)}) is None
    assert ratio([summary(run_rows())], [], "ttft_ms.p50") is None


def test_gaps_between_tokens_are_told_apart_by_whether_another_context_came_back() -> None:
    rows: list[dict[str, Any]] = [
        {"row": "stream", "arrivals_us": [0, 10_000, 20_000, 70_000, 80_000]},
        {"row": "beside", "began_us": 25_000, "ttft_ms": 30.0},
    ]
    found = stream_figures(rows)
    assert found["stream_ms"]["during"] == times([50.0])
    assert found["stream_ms"]["alone"] == times([10.0, 10.0, 10.0])
    assert (found["stream_ms"]["tokens"], found["ttft_beside_ms"]["p50"]) == (5, 30.0)
    assert stream_figures([]) == {"stream_ms": None, "ttft_beside_ms": None}


def test_all_contexts_can_begin_with_the_same_text_and_be_of_one_app() -> None:
    trace = [TraceCall(0, "a b", "x", 30, 0, text="hello"), TraceCall(1, "a b", "x", 5, 4, text="and?")]
    begin, later = with_shared_beginning(trace, 100, one_app=True)
    assert (begin.app, begin.context, later.context) == ("app", "a-b.x", "a-b.x")
    assert begin.text is not None and len(begin.text) == 400 + len("\nhello") and begin.text.endswith("\nhello")
    assert begin.prompt == 130
    assert later.text == "and?"
    assert list(with_shared_beginning(trace, 0, one_app=False)) == trace


def test_answers_are_compared_call_by_call() -> None:
    other = run_rows()
    other[3] = {**other[3], "tokens": [2, 7]}
    assert same_answers(run_rows(), run_rows()) == 1.0
    assert same_answers(other, run_rows()) == 0.75
    assert same_answers([], run_rows()) is None


def test_an_interrupted_run_is_made_again_and_a_whole_one_is_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out" / "j.jsonl")
    assert journal.runs() == {}
    for row in run_rows()[:3]:
        journal.append(row)
    assert journal.runs() == {}
    for row in run_rows():
        journal.append(row)
    assert journal.runs() == {"r": run_rows()}
    with (tmp_path / "out" / "j.jsonl").open("a") as file:
        file.write('{"run": "s", "row": "beg')  # the power went
    again = Journal(tmp_path / "out" / "j.jsonl")
    again.append({"run": "t", "row": "begin"})
    assert list(again.runs()) == ["r"]
    assert (tmp_path / "out" / "j.jsonl").read_text().splitlines()[-1] == '{"run": "t", "row": "begin"}'


def test_bars_are_held_against_programs_that_ran() -> None:
    ours, theirs = [summary(run_rows())], [summary(run_rows(50.0))]
    found = bars({"llmaas": ours, "kill": theirs, "llama-server": theirs}, "markov")
    verdicts = {bar.what.partition(": ")[2]: bar.holds for bar in found}
    assert verdicts == {
        "switch_ms.p50, kill / llmaas": False,  # 50 times, and 100 are wanted
        "switch_ms.p99, kill / llmaas": True,
        "ttft_ms.p50, the better llama-server / llmaas": True,
        "ttft_ms.p99, the better llama-server / llmaas": True,
        "ttft_restart_ms.p50, the better llama-server / llmaas": True,
    }
    assert "swap" in missing({"llmaas": ours})
    assert bars({}, "markov") == []
    (fitting,) = bars({"llmaas": ours, "kill": theirs, "llama-server": ours}, "markov", fits=True)
    assert fitting.holds, "no gain is wanted where all fits"
    (shared,) = bars({"llmaas": ours, "llama-server": theirs}, "markov", shared=True)
    assert (shared.value, shared.bar) == (50.0, 5.0)
    (fitting,) = bars({"llmaas": ours, "llama-server": ours}, "markov", fits=True, shared=True)
    assert (fitting.value, fitting.bar) == (1.0, 1.0)
    (first,) = bars({"llmaas": ours, "swap": [summary(run_rows(2.0))]}, "markov", disk_held=True)
    assert (first.value, first.bar, first.holds) == (2.0, 3.0, False)
    assert [bar.holds for bar in answers_bar(0.99, "markov")] == [False]
    assert answers_bar(None, "markov") == []


def test_bars_of_a_first_token_name_what_computing_the_new_turn_alone_would_reach() -> None:
    ours, theirs = [summary(run_rows())], [summary(run_rows(50.0))]
    ours[0]["prefill_ms"] = {"p50": ours[0]["ttft_ms"]["p50"] / 2, "p99": ours[0]["ttft_ms"]["p99"] / 4}
    told = [bar.what for bar in bars({"llmaas": ours, "llama-server": theirs}, "markov")]
    assert "markov: ttft_ms.p50, the better llama-server / llmaas, bound 100" in told
    assert "markov: ttft_ms.p99, the better llama-server / llmaas, bound 200" in told
    assert "markov: ttft_restart_ms.p50, the better llama-server / llmaas" in told
    restart = {"run": "r", "row": "restart", "ttft_ms": 50.0, "prefill_ms": 20.0, "number": 1}
    ours = [summary([*run_rows()[:-2], restart])]
    told = [bar.what for bar in bars({"llmaas": ours, "llama-server": theirs}, "markov")]
    assert "markov: ttft_restart_ms.p50, the better llama-server / llmaas, bound 125" in told


def test_of_a_trace_whose_new_turns_allow_less_than_is_wanted_most_of_that_is_held_to() -> None:
    ours, theirs = [summary(run_rows())], [summary(run_rows(4.0))]
    ours[0]["prefill_ms"] = {"p50": ours[0]["ttft_ms"]["p50"] / 2, "p99": ours[0]["ttft_ms"]["p99"] / 1.1}
    found = {bar.what: bar for bar in bars({"llmaas": ours, "llama-server": theirs}, "markov")}
    p50 = found["markov: ttft_ms.p50, the better llama-server / llmaas, bound 8, 20 wanted"]
    p99 = found["markov: ttft_ms.p99, the better llama-server / llmaas, bound 4.4, 10 wanted"]
    assert (p50.value, p50.bar, p50.holds) == (4.0, 6.4, False), "half of it was something else"
    assert (p99.value, p99.bar, p99.holds) == (4.0, 3.52, True)


def test_the_report_is_one_file_that_loads_nothing() -> None:
    text = page({"llmaas": [run_rows(), run_rows(2.0)], "<kill>": [run_rows(9.0)]}, "A & B", {"cpu": "<x>"})
    assert text.count("<svg") == 3
    assert "src=" not in text and "href=" not in text
    assert "&lt;kill&gt;" in text and "<kill>" not in text
    assert "A &amp; B" in text
    assert "± " in text, "two runs have a spread"
    assert plot({}, "x", "y").startswith("<svg")
    assert Axis([1, 1000], 0, 300, log=True).pixel(100) == 200
    assert Axis([], 0, 10).ticks()


def test_a_budget_is_arranged_as_suits_each_program() -> None:
    budget = Budget(nbytes=1 << 30, token_bytes=20_000, longest=3000, total=100_000)
    assert budget.held_cells == 3072
    assert budget.all_cells == 53_504
    for name, system in SYSTEMS.items():
        flags = system.serve_flags(budget)
        cells = int(flags[flags.index("--cells") + 1])
        pool = int(flags[flags.index("--pool-bytes") + 1])
        if system.kind == "llmaas" and not system.unbounded:
            assert cells * 20_000 + pool <= (1 << 30) + (16 << 20), name
        params = system.server_params(budget, "/f")
        if system.kind == "llama_server" and not system.unbounded:
            assert params["n_ctx"] * 20_000 + (params["cache_ram_mib"] << 20) <= 1 << 30, name
    assert SYSTEMS["llama-server-files"].server_params(budget, "/f")["slot_save_path"] == "/f/"
    assert set(DEFAULT) < set(SYSTEMS)


def test_calls_get_texts_and_know_whether_they_switch() -> None:
    engine = FakeEngine(n_cells=256)
    trace = [
        TraceCall(0, "a", "x", 30, 0, text="hello"),
        TraceCall(0, "a", "y", 40, 0, prefix="p", prefix_tokens=10),
        TraceCall(3000, "a", "x", 5, 4),
        TraceCall(3001, "a", "x", 5, 4),
        TraceCall(9000, "b", "z", 40, 4, prefix="p", prefix_tokens=10),
    ]
    work = work_of(trace, engine, 1)
    assert [call.begins for call in work.calls] == [True, True, False, False, True]
    assert [call.switches for call in work.calls] == [False, False, True, False, False]
    assert work.calls[0].text == "hello"
    assert work.calls[1].text[:10] == work.calls[4].text[:10]
    assert work.calls[1].text[10:] != work.calls[4].text[10:]
    assert work.calls[2].pause_s == 0.25
    assert work.longest == max(len(work.calls[i].tokens) for i in (1, 4)) + 4
    assert [call.context for call in shortened(trace, 2, 1)] == ["x", "y", "x"]


def test_room_is_kept_for_the_calls_after_the_trace_and_for_no_more() -> None:
    names = ("x", "y", "z", "x", "y", "x")
    trace = [TraceCall(0, "a", name, 20, 4, text=f"{name} " * 10) for name in names]
    work = work_of(trace, FakeEngine(n_cells=1024), 1)
    assert [call.number for call in work.last_calls] == [4, 5], "z was not called after it began"
    assert [[call.number for call in calls] for calls in work.called_again(1, 1)] == [[4], [5]]
    assert work.called_again(0, 0) == ([], [])
    once = len(work.calls[5].tokens) + AGAIN_ANSWER
    assert work.longest_then(0, 0) == work.longest
    assert [work.longest_then(*more) - work.longest for more in ((0, 1), (1, 1), (2, 1))] == [once, once, 2 * once]
    with_stream = budget_of(work, 10, 0.1, beside=2, restarts=1)
    assert with_stream.longest > budget_of(work, 10, 0.1).longest + 2 * once + 128


def test_what_was_asked_for_decides_the_plan_and_the_name_of_a_run(tmp_path: Path) -> None:
    given = own_options().parse_args(["--n-contexts", "3", "--systems", "kill,llmaas", "--pattern", "phone,random"])
    plan = plan_of(given, quick=True)
    assert (plan.contexts, plan.systems, plan.patterns) == (3, ["kill", "llmaas"], ["phone", "random"])
    with pytest.raises(SystemExit):
        own_options().parse_args(["--systems", "nobody"])
    held = own_options().parse_args(["--disk-rate", "300000000", "--systems", "llmaas,llama-server-files"])
    with pytest.raises(SystemExit, match="leave llama-server-files out"):
        plan_of(held, quick=True)
    options = Options(True, 1, Path("m.gguf"), 2, tmp_path)
    trace = trace_of(plan, given, "random", 1)
    work = work_of(trace, FakeEngine(n_cells=256), 1)
    assert len(work.contexts) == 3
    names = {run_name(work, each, options, "kill", 0) for each in (plan, plan, FULL)}
    assert len(names) == 2
    assert own_options().parse_args(["--systems", "all"]).systems == list(SYSTEMS)
    assert rows_of(Path("a/b.jsonl")) == Path("a/b.rows.jsonl")
    command = command_of("replay", ["--contexts", "/a/b/c.gz", "--out", "x", "--quick", "--rows", "/r"])
    assert command == "python -m bench.replay --contexts c.gz --quick"


def test_meters_read_differences_and_know_what_they_lack(tmp_path: Path) -> None:
    assert energy(tmp_path) is None
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "energy_uj").write_text("2500000\n")
    assert energy(tmp_path) == 2.5
    found = difference(Reading(1, 2, 0.5, 3.0), Reading(11, 22, 1.5, 1.0))
    assert found == {"read_bytes": 10, "written_bytes": 20, "cpu_s": 1.0, "energy_j": None}


def test_progress_says_the_time_left_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(10)
    progress.advance(1)
    assert capsys.readouterr().err == ""


def result_line(scale: float, repeats: int) -> dict[str, Any]:
    options = Options(True, 1, Path("m"), 2, Path())
    stream = WorkCall(-1, STREAM, STREAM, "?", (1,), 1, 0.0, begins=True, switches=False)
    replay = Replay(Work((), 5, 50, stream), Budget(100, 10, 5, 50), FULL, options, Journal(Path("/dev/null")))
    found = {"llmaas": [run_rows(scale + i / 100) for i in range(repeats)], "kill": [run_rows(50.0)] * repeats}
    figures = {"command": "python -m bench.replay", "cold": True, "disk": "as it is", "memory": 0.25}
    figures["markov"] = figures_of(replay, found)
    machine = {"cpu": "a CPU", "cores": 2, "others_cpu": 0.01}
    line = {
        "bench": "replay",
        "machine": machine,
        "model": "M",
        "commit": "c",
        "time": "2026-01-01T",
        "figures": figures,
    }
    found_line: dict[str, Any] = json.loads(json.dumps(line))
    return found_line


def test_what_moved_beyond_the_spread_is_found() -> None:
    old, same, slower = result_line(1.0, 3), result_line(1.01, 3), result_line(1.5, 3)
    assert not any(row.beyond for row in moved(old, same))
    worse = [row.what for row in moved(old, slower) if row.beyond]
    assert "markov, llmaas, ttft_ms.p50" in worse
    assert not any("kill" in what for what in worse)
    assert differs(old, slower) == []
    assert any(row.beyond for row in moved(result_line(1, 1), result_line(1.2, 1)))


def test_programs_that_fail_are_told_with_the_reason() -> None:
    line = result_line(1.0, 1)
    line["figures"]["markov"]["absent"] = {"hearth": "it did not\nstart"}
    text = results.page([line])
    assert "`hearth` could not be run: it did not start" in text
    assert "1 calls failed, the first: refused" in text


def test_an_app_of_hearth_sends_its_messages_and_waits_for_the_whole_answer() -> None:
    asked: list[dict[str, Any]] = []

    class Stub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"choices": [{"message": {"content": "yes"}}], "timings": {"prompt_n": 7, "prompt_ms": 9.5}}
            body = json.dumps(message).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Stub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        app = HearthApp(f"http://127.0.0.1:{server.server_port}", "a")
        reply = app.call({"messages": [{"role": "user", "content": "a"}], "text": "b", "n_new": 4})
        server.shutdown()
    assert (reply["text"], reply["n_computed"], reply["prefill_ms"]) == ("yes", 7, 9.5)
    assert reply["ttft_ms"] == reply["total_ms"]
    assert [message["content"] for message in asked[0]["messages"]] == ["a", "b"]
    assert (asked[0]["max_tokens"], asked[0]["ignore_eos"]) == (4, True)


def test_the_page_of_results_is_what_the_files_say() -> None:
    text = results.page([result_line(1.0, 2)])
    assert "| llmaas | 201 | " in text
    assert "python -m bench.replay" in text
    assert all(len(line) <= 100 for line in text.splitlines())
    for path, made in results.pages(results.read_lines()).items():
        assert path.read_text("utf-8") == made, f"python -m bench.results makes another {path.name}"


def test_a_replay_on_the_real_model_ends_with_a_report(tmp_path: Path, gguf: Path) -> None:
    from bench.lib.engine import engine

    options = Options(True, 1, gguf, 1, tmp_path / "f")
    options.folder.mkdir()
    plan = Plan(2, 3, 256, ("llmaas",), restarts=1, beside=2)
    trace = [TraceCall(0.0, "app one", name, 90, 0) for name in "xy"]
    trace += [TraceCall(1.0 + i, "app one", name, 10, 3) for i, name in enumerate("xyx")]
    with engine(options, 256) as thread:
        work = work_of(trace, thread.engine, 1)
        budget = budget_of(work, thread.engine.info.geometry.token_bytes, 0.25)
    replay = Replay(work, budget, plan, options, Journal(tmp_path / "j.jsonl"))
    replay.carry_out(Progress(5), "test")
    (rows,) = replay.found()["llmaas"]
    found = summary(rows)
    assert found["failed"] == 0
    assert found["ttft_ms"]["n"] == 3
    assert found["ttft_restart_ms"]["n"] == 1
    assert found["stream_ms"]["tokens"] == STREAM_ANSWER
    assert found["stream_ms"]["during"]["n"] > 0 and found["ttft_beside_ms"]["n"] == 2
    assert found["took"]["cpu_s"] > 0
    assert found["peak_anonymous"] > 0
    before = (tmp_path / "j.jsonl").read_bytes()
    replay.carry_out(Progress(5), "test")
    assert (tmp_path / "j.jsonl").read_bytes() == before, "a whole run is not made again"
