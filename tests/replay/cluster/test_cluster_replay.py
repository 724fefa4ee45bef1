"""A cluster in virtual time: what happens to calls, under the service's policy and under others."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from llmaas.policies.node_report import ModelTier
from llmaas.replay.cluster.figures import cluster_figures, quantile
from llmaas.replay.cluster.job import ClusterReport
from llmaas.replay.cluster.node import PAUSE_S
from llmaas.replay.cluster.placers import PLACERS
from llmaas.replay.cluster.profiles import PROFILES, SIZES, ClusterModel, NodeProfile
from llmaas.replay.cluster.simulator import ClusterReplay
from llmaas.replay.cluster.workload import ClusterCall, ClusterContext, with_models
from llmaas.traces import bursts
from llmaas.traces.call import TraceCall

SMALL, LARGE = ClusterModel.of("small", "1B"), ClusterModel.of("large", "8B")
GPU = PROFILES["gpu"]
ONE = replace(GPU, machine=replace(GPU.machine, weights=1e10), lanes=1, memory=LARGE.nbytes)
"""One call at a time, slowly, and memory for one large model."""


def replay(
    calls: list[ClusterCall], profiles: list[NodeProfile], models: list[ClusterModel], placer: str = "placement"
) -> tuple[ClusterReport, ClusterReplay]:
    cluster = ClusterReplay(profiles, models, PLACERS[placer](random.Random(1).randrange))
    report = cluster.run(calls)
    assert cluster.check() == []
    return report, cluster


def burst_calls(models: list[ClusterModel]) -> list[ClusterCall]:
    return with_models(bursts.make(40, seed=4, hours=3.0), models)


def test_one_call_takes_what_its_parts_take() -> None:
    call = ClusterCall(5.0, "c", LARGE, 1000, 100)
    report, _ = replay([call], [GPU], [LARGE])
    job = report.jobs[0]
    load_s = GPU.start + LARGE.nbytes / GPU.storage.read
    prefill_s, decode_s = 1000 * GPU.prefill_token(LARGE), 100 * GPU.decode_token(LARGE)
    assert job.start_s == pytest.approx(load_s)
    assert job.first_s == pytest.approx(load_s + prefill_s)
    assert job.total_s == pytest.approx(load_s + prefill_s + decode_s)
    assert (report.tally.loads, report.tally.load_bytes) == (1, LARGE.nbytes)


def test_a_second_turn_reads_its_context_where_it_is() -> None:
    calls = [ClusterCall(t, "c", LARGE, 1000, 92) for t in (0.0, 100.0)]
    report, _ = replay(calls, [GPU] * 8, [LARGE])
    assert report.tally.loads == 1 and report.tally.contexts_moved == 0
    second = report.jobs[1]
    nbytes = 1088 * LARGE.token_bytes  # 17 full chunks; the rest of four tokens is computed
    read_s = GPU.storage.latency + nbytes / GPU.storage.read + nbytes / GPU.machine.code
    assert second.start_s == pytest.approx(read_s + 4 * GPU.prefill_token(LARGE))
    assert (report.tally.read_bytes, report.tally.recomputed) == (int(nbytes), 4)


def test_a_turn_waits_for_the_one_before_it_and_not_longer() -> None:
    calls = [ClusterCall(t, "c", LARGE, 100, 1000) for t in (0.0, 1.0)]
    first, second = replay(calls, [GPU], [LARGE])[0].jobs
    assert first.done is not None and second.submitted == first.done


def test_a_call_for_a_model_that_is_being_loaded_waits_for_it() -> None:
    calls = [ClusterCall(t, name, LARGE, 10, 10) for t, name in ((0.0, "a"), (1.0, "b"))]
    report, _ = replay(calls, [GPU], [LARGE])
    load_s = GPU.start + LARGE.nbytes / GPU.storage.read
    assert [job.start_s for job in report.jobs] == [
        pytest.approx(load_s), pytest.approx(load_s - 1.0 + 10 * GPU.prefill_token(LARGE)),
    ]  # fmt: skip
    assert report.tally.loads == 1


def test_a_call_in_the_way_moves_and_goes_on_elsewhere() -> None:
    """The only node that the large model fits on answers with a small one for long; the other node rests."""
    calls = [
        ClusterCall(0.0, "parks the large one", LARGE, 10, 10),
        ClusterCall(100.0, "long", SMALL, 500, 4000),
        ClusterCall(200.0, "new", LARGE, 100, 10),
    ]
    nodes = [ONE, replace(ONE, memory=SMALL.nbytes)]
    report, _ = replay(calls, nodes, [SMALL, LARGE])
    long, new = report.jobs[1:]
    assert (report.tally.calls_moved, long.moved) == (1, 1)
    moves_s = ONE.load(ModelTier.DISK)(SMALL.nbytes) + ONE.load(ModelTier.MEMORY)(LARGE.nbytes)
    assert new.start_s == pytest.approx(moves_s, abs=0.5)
    assert long.total_s == pytest.approx(long.first_s + 4000 * ONE.decode_token(SMALL) + PAUSE_S, abs=0.1)
    waits, _ = replay(calls, nodes, [SMALL, LARGE], "least_loaded")
    assert waits.tally.calls_moved == 0 and 20 * new.start_s < waits.jobs[2].start_s


def test_a_call_that_is_stopped_begins_anew_and_is_not_stopped_again() -> None:
    calls = [ClusterCall(0.0, "long", SMALL, 500, 2000)]
    calls += [ClusterCall(10.0 + i, f"new{i}", LARGE, 10, 10) for i in range(3)]
    report, _ = replay(calls, [ONE], [SMALL, LARGE], "availability")
    stopped = report.jobs[0]
    assert report.tally.preemptions >= 1 and max(job.preempted for job in report.jobs) == 1
    assert stopped.preempted == 1
    assert stopped.total_s > 2000 * ONE.decode_token(SMALL) + 10.0
    assert stopped.start_s < 3.0, "it has begun once; that it must again is no further start"


@pytest.mark.parametrize("placer", PLACERS)
def test_every_call_is_served_and_the_books_balance(placer: str) -> None:
    models = [ClusterModel.of(f"{size}-{i}", size) for i in range(3) for size in ("8B", "1B", "14B")]
    calls = burst_calls(models)
    profiles = [replace(GPU, memory=2 * LARGE.nbytes, lanes=n) for n in (1, 1, 1, 2)]
    report, _ = replay(calls, profiles, models, placer)
    again, _ = replay(calls, profiles, models, placer)
    assert len(report.jobs) == len(calls) > 300
    assert all(job.done is not None for job in report.jobs) and report.tally.refused == 0
    assert all(job.submitted <= (job.ready or 0) <= (job.started or 0) <= (job.done or 0) for job in report.jobs)
    assert cluster_figures(report) == cluster_figures(again)
    assert (report.tally.preemptions > 0) == (placer in ("shepherd", "availability"))
    if placer not in ("placement", "serverlessllm"):
        assert report.tally.calls_moved == 0
    elif placer == "placement":
        assert report.tally.calls_moved > 0


def test_starts_are_sooner_where_it_is_known_what_nodes_have() -> None:
    models = [ClusterModel.of(f"{size}-{i}", size) for i in range(6) for size in ("8B", "3B", "14B")]
    calls = burst_calls(models)
    found = {name: cluster_figures(replay(calls, [GPU] * 8, models, name)[0]) for name in PLACERS}
    p99 = {name: float(f["start_s_p99"]) for name, f in found.items()}  # type: ignore[arg-type]
    p50 = {name: float(f["start_s_p50"]) for name, f in found.items()}  # type: ignore[arg-type]
    assert 4 * p50["placement"] < min(p50["availability"], p50["random"], p50["round_robin"], p50["least_loaded"])
    assert p50["placement"] <= 1.1 * p50["serverlessllm"]
    assert p99["placement"] < p99["serverlessllm"], "a load is worth to later calls what they need not wait then"


def test_a_model_that_fits_nowhere_is_refused_and_the_next_turn_is_asked_all_the_same() -> None:
    huge = ClusterModel.of("huge", "70B")
    calls = [ClusterCall(t, "c", huge, 10, 10) for t in (0.0, 1.0)] + [ClusterCall(2.0, "d", SMALL, 10, 10)]
    for placer in PLACERS:
        report, _ = replay(calls, [GPU], [SMALL, huge], placer)
        assert report.tally.refused == 2
        assert [job.done is not None for job in report.jobs] == [False, False, True]


def test_a_prefix_that_a_node_holds_is_not_computed_again() -> None:
    calls = [ClusterCall(50.0 * i, f"c{i}", LARGE, 2100, 10, "system", 2048) for i in range(3)]
    report, _ = replay(calls, [GPU] * 4, [LARGE])
    first, second, third = (job.first_s - job.start_s for job in report.jobs)
    assert first == pytest.approx(2100 * GPU.prefill_token(LARGE))
    assert second == pytest.approx(third) == pytest.approx(52 * GPU.prefill_token(LARGE))
    assert report.tally.recomputed == 0
    assert [job.plan.read for job in report.jobs] == [0, 2048, 2048]


def test_models_are_shared_out_by_name_the_first_most_often() -> None:
    models = [ClusterModel.of(str(i), "1B") for i in range(4)]
    trace = [TraceCall(float(i), "app", f"c{i % 500}", 10, 10) for i in range(1000)]
    calls = with_models(trace, models, speed=2.0)
    assert calls == with_models(trace, models, speed=2.0)
    assert calls[-1].t == 999 / 2
    of = {call.context: call.model for call in calls}
    assert all(call.model is of[call.context] for call in calls)
    counts = [sum(m is model for m in of.values()) for model in models]
    assert counts == sorted(counts, reverse=True) and min(counts) > 20


def test_contexts_share_the_marks_of_what_they_share_and_no_others() -> None:
    a, b = (ClusterContext(name, "p", 128) for name in "ab")
    for context in (a, b):
        context.grow(64 * 5 + 3)
    assert len(a.chain) == 5 and a.chain[:2] == b.chain[:2] == a.prefix_chain()
    assert not set(a.chain[2:]) & set(b.chain[2:])
    before = a.chain
    a.grow(64 * 9)
    assert a.chain[:5] == before and len(a.chain) == 9


def test_profiles_say_how_long_loading_takes() -> None:
    assert GPU.load(ModelTier.MEMORY)(10**9) < GPU.load(ModelTier.DISK)(10**9)
    assert ClusterModel.of("m", "70B").nbytes > 39 * 10**9 and set(SIZES) > {"0.1B", "70B"}


def test_a_quantile_is_a_value_that_was_seen() -> None:
    assert quantile([], 99) == 0.0
    assert [quantile([1.0, 2.0, 3.0, 4.0], p) for p in (1, 50, 51, 99, 100)] == [1.0, 2.0, 3.0, 4.0, 4.0]
