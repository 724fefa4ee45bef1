"""``/metrics``: the daemon's figures, as Prometheus reads them.

Law: names and labels change with a major version only; docs/http.md lists them. Names of apps are for the operator, so
they never come over HTTP: ``llmaas stats --prometheus`` has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmaas.http.call import HttpCall
from llmaas.http.edge import Edge
from llmaas.http.errors import HttpError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_HISTOGRAMS = {
    "ttft_ms": ("time_to_first_token_seconds", 1e-3, "From a call's submission to its first token."),
    "queue_ms": ("queue_seconds", 1e-3, "How long calls waited to be admitted."),
    "decode_tokens_per_s": ("decode_tokens_per_second", 1.0, "Tokens per second of answers, after the first token."),
}
_SWITCH = "switch_ms."
_FAILED = "failed."
_MORE = {f"tokens_from_{name}" for name in ("cells", "pool", "disk")} | {"tokens_recomputed"}
"""Counts that are one metric with a label."""


async def metrics(edge: Edge, call: HttpCall) -> None:
    """The figures of this moment, without those that name an app; of several models, of the default one, which is not
    loaded for that."""
    if (listed := await edge.listed(call)) and listed[0].state != "ready":
        raise HttpError(503, "the default model is not in memory", code="not_in_memory", retry=True)
    async with edge.daemon(call) as (client, _):
        stats = await client.stats(octaves=True)
    try:
        text = exposition(stats)  # without apps it is small, whatever they do
    except ImportError:
        words = "/metrics needs the package prometheus-client: pip install 'llmaas[http]'"
        raise HttpError(501, words, code="not_implemented") from None
    await call.reply(text, kind=b"text/plain; version=0.0.4; charset=utf-8")


def exposition(stats: Mapping[str, Any]) -> bytes:
    """What the operation ``stats`` with ``octaves`` says, in Prometheus' text format. Raises ImportError."""
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import Collector

    class Figures(Collector):
        def collect(self) -> Iterable[Metric]:
            yield from _gauges(stats)
            yield from _counts(stats.get("counts", {}))
            yield from _histograms(stats.get("calls", {}), stats.get("octaves", {}))
            yield from _apps(stats.get("apps", {}))
            yield from _quotas(stats.get("app_quotas", {}))

    return generate_latest(Figures())


def _gauges(stats: Mapping[str, Any]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    yield InfoMetricFamily("llmaas_model", "What is served.", {"name": str(stats.get("model", ""))})
    requests, cells = stats.get("requests", {}), stats.get("cells", {})
    yield GaugeMetricFamily("llmaas_contexts", "Contexts that are kept.", stats.get("contexts", 0))
    yield GaugeMetricFamily("llmaas_text_bytes", "Text and tokens that are kept.", stats.get("text_bytes", 0))
    yield GaugeMetricFamily("llmaas_calls_active", "Calls that wait or run.", requests.get("active", 0))
    waiting = GaugeMetricFamily("llmaas_calls_waiting", "Calls that wait to be admitted.", labels=["priority"])
    by_priority = requests.get("waiting_by_priority", {})
    for priority in map(str, range(10)):
        waiting.add_metric([priority], by_priority.get(priority, 0))
    yield waiting
    yield GaugeMetricFamily("llmaas_cells_used", "Tokens in the engine's cells.", cells.get("used", 0))
    yield GaugeMetricFamily("llmaas_cells", "Tokens that the engine's cells can hold.", cells.get("total", 0))
    pool, disk = stats.get("pool_bytes", {}), stats.get("disk_bytes", {})
    adapters = stats.get("adapters", {}).get("bytes", {})
    used = GaugeMetricFamily("llmaas_tier_bytes", "Bytes of coded chunks, and of LoRA adapters.", labels=["tier"])
    most = GaugeMetricFamily("llmaas_tier_budget_bytes", "What a tier may hold; +Inf is no limit.", labels=["tier"])
    for tier, nbytes, budget in (
        ("pool", pool.get("used"), pool.get("budget")),
        ("disk", disk.get("chunks"), disk.get("quota")),
        ("adapters", adapters.get("used"), adapters.get("budget")),
    ):
        used.add_metric([tier], nbytes or 0)
        most.add_metric([tier], budget if isinstance(budget, (int, float)) else float("inf"))
    yield used
    yield most


def _counts(counts: Mapping[str, int]) -> Iterator[Metric]:
    """Each count of the planner, under its own name; where tokens came from is one metric."""
    from prometheus_client.core import CounterMetricFamily

    tokens = CounterMetricFamily("llmaas_switched_tokens", "Tokens of contexts that came back.", labels=["source"])
    for source in ("cells", "pool", "disk"):
        tokens.add_metric([source], counts.get(f"tokens_from_{source}", 0))
    tokens.add_metric(["recomputed"], counts.get("tokens_recomputed", 0))
    yield tokens
    for name, n in counts.items():
        if name not in _MORE:
            yield CounterMetricFamily(f"llmaas_{name}", f"Since the start: {name.replace('_', ' ')}.", n)


def _histograms(calls: Mapping[str, Any], octaves: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    for name, (metric, unit, text) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(f"llmaas_{metric}", text)
        _add(family, [], calls.get(name, {}), octaves.get(name, {}), unit)
        yield family
    text = "How long bringing a context back took, by the slowest tier that it came from."
    switches = HistogramMetricFamily("llmaas_switch_seconds", text, labels=["source"])
    errors = CounterMetricFamily("llmaas_errors", "Calls that failed, by the code of their error.", labels=["code"])
    for name, value in calls.items():
        if name.startswith(_SWITCH):
            _add(switches, [name.removeprefix(_SWITCH)], value, octaves.get(name, {}), 1e-3)
        elif name.startswith(_FAILED):
            errors.add_metric([name.removeprefix(_FAILED)], value)
    yield switches
    yield errors


def _add(family: Any, labels: list[str], figures: Mapping[str, float], octaves: Mapping[str, int], unit: float) -> None:
    """A histogram's counts; ``unit`` makes the metric's unit of the daemon's."""
    count = figures.get("count", 0)
    buckets = [(f"{float(bound) * unit:g}", n) for bound, n in octaves.items()]
    family.add_metric(labels, [*buckets, ("+Inf", count)], figures.get("sum", 0.0) * unit)


def _apps(apps: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    if not apps:
        return
    calls = CounterMetricFamily("llmaas_app_calls", "Calls of an app that have ended.", labels=["app"])
    tokens = CounterMetricFamily("llmaas_app_tokens", "Tokens that an app was served.", labels=["app", "kind"])
    failed = CounterMetricFamily("llmaas_app_errors", "Calls of an app that failed.", labels=["app", "code"])
    for app, tally in apps.items():
        calls.add_metric([app], tally["calls"])
        for kind in ("prompt", "generated", "recomputed"):
            tokens.add_metric([app, kind], tally[f"tokens_{kind}"])
        for code, n in tally["failed"].items():
            failed.add_metric([app, code], n)
    yield from (calls, tokens, failed)


def _quotas(apps: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[Metric]:
    """What apps that have quotas of their own may have, and have. Of a rate there is no use to be told at a moment."""
    from prometheus_client.core import GaugeMetricFamily

    if not apps:
        return
    quota = GaugeMetricFamily("llmaas_app_quota", "What an app may have.", labels=["app", "of"])
    used = GaugeMetricFamily("llmaas_app_quota_used", "What an app has of what is bounded.", labels=["app", "of"])
    for app, quotas in apps.items():
        for name, each in quotas.items():
            quota.add_metric([app, name], each["quota"])
            if each["used"] is not None:
                used.add_metric([app, name], each["used"])
    yield from (quota, used)
