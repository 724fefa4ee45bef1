"""/metrics: what Prometheus reads, and the dashboard that shows it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from llmaas.records import AppId, AppQuota
from tests.support.http_edge import CHAT, http_edge
from tests.support.loop import on_a_loop

parser = pytest.importorskip("prometheus_client.parser")
DOCS = Path(__file__).parents[2] / "docs"
APP = AppId(f"{os.geteuid()}/http")


def families(text: str) -> dict[str, Any]:
    return {family.name: family for family in parser.text_string_to_metric_families(text)}


def value(found: dict[str, Any], name: str, **labels: str) -> float:
    family = found.get(name) or next(f for n, f in found.items() if name.startswith(n))
    (sample,) = [s for s in family.samples if s.name == name and labels.items() <= s.labels.items()]
    return float(sample.value)


@on_a_loop
async def test_the_figures_are_those_of_the_daemon_and_no_app_is_named(tmp_path: Path) -> None:
    async with http_edge(tmp_path) as edge, edge.http() as http, edge.http(unix=True, app="secret-app") as unix:
        assert (await unix.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3})).status_code == 200
        for client in (http, unix):
            reply = await client.get("/metrics")
            assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain; version=0.0.4")
            found = families(reply.text)
            stats = edge.daemon.service.stats()
            counts: Any = stats["counts"]
            assert value(found, "llmaas_tokens_generated_total") == counts["tokens_generated"] > 0
            assert value(found, "llmaas_time_to_first_token_seconds_count") == 2
            assert value(found, "llmaas_time_to_first_token_seconds_bucket", le="+Inf") == 2
            assert value(found, "llmaas_calls_waiting", priority="5") == 0
            assert value(found, "llmaas_tier_bytes", tier="pool") == stats["pool_bytes"]["used"]  # type: ignore[index]
            assert "secret-app" not in reply.text and "llmaas_app" not in reply.text
            buckets = [s.value for s in found["llmaas_queue_seconds"].samples if s.name.endswith("_bucket")]
            assert buckets == sorted(buckets)


@on_a_loop
async def test_quotas_of_an_app_and_their_use_are_for_the_operator_alone(tmp_path: Path) -> None:
    from llmaas.http.metrics import exposition

    quota = {"contexts": 5, "tokens": 900, "disk_bytes": 1 << 20, "requests": 3, "rate": 7.5, "priority": 4}
    async with http_edge(tmp_path) as edge, edge.http() as http:
        await edge.daemon.service.apps.set_quota(APP, AppQuota(**quota))  # type: ignore[arg-type]
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert "llmaas_app_quota" not in (await http.get("/metrics")).text
        async with edge.daemon.connect("operator", admin=True) as operator:
            found = families(exposition(await operator.stats(octaves=True)).decode())
        used = edge.daemon.service.apps.infos()[0].used
    assert {of: value(found, "llmaas_app_quota", app=APP, of=of) for of in quota} == quota
    assert value(found, "llmaas_app_quota_used", app=APP, of="contexts") == used.contexts == 1
    assert value(found, "llmaas_app_quota_used", app=APP, of="tokens") == used.tokens > 0
    assert {s.labels["of"] for s in found["llmaas_app_quota_used"].samples} == quota.keys() - {"rate", "priority"}


@on_a_loop
async def test_dashboard_and_documentation_use_names_that_there_are(tmp_path: Path) -> None:
    from llmaas.http.metrics import exposition

    async with http_edge(tmp_path) as edge, edge.http() as http:
        await http.post("/v1/chat/completions", json=CHAT)
        await http.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": "x" * 9000}]})
        await edge.daemon.service.apps.set_quota(APP, AppQuota(contexts=5))
        text = exposition(edge.daemon.service.stats(octaves=True)).decode()
    known = {sample.name for family in families(text).values() for sample in family.samples}
    panels = json.loads((DOCS / "grafana.json").read_text("utf-8"))["panels"]
    shown = {name for panel in panels for t in panel["targets"] for name in re.findall(r"llmaas_\w+", t["expr"])}
    section = re.search(r"^## Metrics$(.*?)^## ", (DOCS / "http.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert section
    documented = set(re.findall(r"`(llmaas_[a-z_]+)`", section[1]))
    bases = {re.sub(r"_(bucket|count|sum)$", "", name) for name in known}
    assert len(shown) > 10 and shown <= known
    assert len(documented) > 15 and documented <= bases | known
