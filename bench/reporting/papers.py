"""The page that shows published figures beside ours.

Law: published figures are those of docs/results/published.json, ours those of benches' lines; other machines and models
are named beside each, and nothing is compared that was not measured alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.replaying.figures import over_repeats
from bench.reporting.markdown import Line, about, command, of_bench, prose, table
from bench.reporting.replays import special

_HEAD = """\
# The papers' figures beside ours

The published figures were measured on other machines with other models, so that a table shows both
and ranks neither. What differs is said with each. This page is made by `python -m bench.results` of
the files in `docs/results/`."""
_MISSING = "Not measured here yet:"


def page(published: Mapping[str, Any], lines: Sequence[Line]) -> str:
    parts = [_HEAD, *_llms(published["llms"], lines), *_llm_os(published["llm_os"], lines)]
    return "\n\n".join([*parts, *_agent_memory(published["agent_memory"], lines)]) + "\n"


def _last(lines: Iterable[Line], bench: str) -> Line | None:
    found = list(of_bench(lines, bench))
    return found[-1] if found else None


def _ours(line: Line | None, bench: str) -> Iterator[str]:
    """How our figures came about."""
    if line is None:
        yield f"{_MISSING} `python -m bench.{bench} --out docs/results/{bench}.jsonl`."
    else:
        yield prose(f"Ours: {line['model']}. " + about(line))
        yield command(line["command"])


# -- LLMS --------------------------------------------------------------------------------------------


def _llms(told: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[str]:
    yield "## LLMS"
    yield prose(f"{told['source']}: {told['setting']}. Means only; no traces or code were published.")
    yield prose(
        "What differs: ours is virtual time, with traces made as the paper describes its own; computing runs at the "
        "paper's rate on the Xiaomi 14 and at data sheets' rates on the Jetsons. The paper computes on 8-bit KV where "
        "it lies, so that a context in memory is there at once. The service computes on f16 in CELLS, 2 GiB for 4096 "
        "tokens of this model, which come on top of the memory named, and decodes what comes from the POOL: 0.5 GB of "
        "codes for 4096 tokens, at about 1 GB/s. Every head of this model has KV of its own, which makes it the worst "
        "case for that: models with grouped heads have a quarter or an eighth of it."
    )
    line = _last(lines, "papers")
    yield from _ours(line, "papers")
    figures = line["figures"] if line is not None else {}
    yield "### Contexts with a mean switch of at most 10 / 25 ms"
    yield _held(told["held"], figures.get("held", ()))
    if rows := list(_real(lines)):
        yield "Real, from [results.md](results.md): all contexts of a run, and the mean of its switches."
        yield table(["model, trace", "contexts", "tokens", "MB for them", "mean switch, ms", "over kill"], rows)
    yield "### Mean switch of 8 contexts, over that of the service"
    yield _speed_ups(told["speed_ups"], figures.get("mean", ()))
    yield "### Ablation: seconds of a mean switch (Jetson Orin NX, 8 contexts, markov)"
    ours = {row["way"]: row["mean_ms"] / 1e3 for row in figures.get("ablation", ())}
    yield table(["", "LLMS", "ours"], [[way, seconds, ours.get(way)] for way, seconds in told["ablation"].items()])
    anew = told["anew_s"]
    yield prose(f"Computing {anew['tokens']} tokens anew took {anew['seconds']} s there ({anew['device']}).")


def _real(lines: Sequence[Line]) -> Iterator[list[object]]:
    """The service in replays on a real model, and how many times as long `kill` took there."""
    for line in of_bench(lines, "replay"):
        for pattern, found in line["figures"].items():
            programs = found.get("programs", {}) if isinstance(found, dict) else {}
            ours = over_repeats(programs.get("llmaas", {}).get("runs", ()), "switch_ms.mean")
            kill = over_repeats(programs.get("kill", {}).get("runs", ()), "switch_ms.mean")
            if ours is not None:
                over = kill[0] / ours[0] if kill is not None and ours[0] else None
                size = [found["contexts"], found["tokens"], f"{found['budget_bytes'] / 1e6:.0f}"]
                model = line["model"].partition(" (")[0].removesuffix(".gguf")
                yield [", ".join([model, pattern, *special(line["figures"])]), *size, ours[0], over]


def _held(told: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [f"{gb} GB" for gb in told["gb"]]
    pairs = zip(told["at_10_ms"], told["at_25_ms"], strict=True)
    found: list[list[object]] = [["LLMS (means)", *(f"{a} / {b}" for a, b in pairs)]]
    for device in dict.fromkeys(row["device"] for row in rows):
        mine = {row["gb"]: f"{row['at_10_ms']} / {row['at_25_ms']}" for row in rows if row["device"] == device}
        found.append([f"ours, {device}", *(mine.get(gb) for gb in told["gb"])])
    return table(["", *columns], found)


def _speed_ups(told: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    places = list(dict.fromkeys((row["device"], row["pattern"]) for row in rows))
    found: list[list[object]] = [["LLMS, over LLMS", *told.values()]]
    for device, pattern in places:
        ms = {row["way"]: row["mean_ms"] for row in rows if (row["device"], row["pattern"]) == (device, pattern)}
        cells = [f"{ms[way] / ms['llmaas']:.3g}" if ms["llmaas"] else None for way in told]
        found.append([f"ours, {device}, {pattern} ({ms['llmaas']:.4g} ms)", *cells])
    return table(["", *told], found)


# -- LLM-OS ------------------------------------------------------------------------------------------


def _llm_os(told: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[str]:
    yield "## LLM-OS"
    yield prose(f"{told['source']}: {told['setting']}. The model is not named with the figures.")
    yield "### Switch by length, computing anew or loading"
    line = _last(lines, "crossover")
    yield from _ours(line, "crossover")
    switch = told["switch"]
    rows: list[list[object]] = [
        [f"LLM-OS, {n} tokens", computed, loaded, None, None]
        for n, computed, loaded in zip(switch["tokens"], switch["recompute_ms"], switch["load_ms"], strict=True)
    ]
    crossing: object = None
    if line is not None:
        disk = line["figures"]["disks"][0]
        crossing = disk["crossover"]
        rows += [
            [f"ours, {r['tokens']} tokens", r["compute_ms"], r["read_ms"], r["pool_ms"], r["chosen_ms"]]
            for r in disk["rows"]
        ]
    yield table(["ms", "computing", "reading", "from POOL", "as chosen"], rows)
    ours = "" if line is None else (f"; ours from {crossing:.4g}" if crossing else "; ours at every length measured")
    yield prose(f"Reading beats computing there from about {switch['crossover_tokens']} tokens on{ours}.")
    yield "### Speed by quantum, 16 clients"
    line = _last(lines, "quantum")
    yield from _ours(line, "quantum")
    yield _quanta(told["quantum"], line)
    yield "### Clients"
    line = _last(lines, "scaling")
    yield from _ours(line, "scaling")
    if line is not None:
        names = ("clients", "tokens_per_s", "per_client", "ttft_ms_p50", "ttft_ms_p99", "gap_ms_p50", "gap_ms_p99")
        head = ["clients", "tokens/s", "of each", "TTFT p50", "p99", "gap p50", "p99"]
        yield table(head, [[row[name] for name in names] for row in line["figures"]["rows"]])


def _quanta(told: Mapping[str, Any], line: Line | None) -> str:
    def shares(values: Sequence[float], single: float) -> list[object]:
        return [f"{value:.4g} ({value / single:.0%})" for value in values]

    rows: list[list[object]] = [
        ["LLM-OS, GPU", *shares(told["gpu_tps"], told["gpu_single"])],
        ["LLM-OS, CPU", *shares(told["cpu_tps"], told["cpu_single"])],
    ]
    for fitting in (1, 4) if line is not None else ():
        assert line is not None
        mine = {r["quantum"]: r for r in line["figures"]["rows"] if r["fitting"] == fitting}
        cells = [f"{mine[q]['tps']:.3g} ({mine[q]['share']:.0%})" if q in mine else None for q in told["tokens"]]
        rows.append([f"ours, {fitting} of 16 fit", *cells])
    return table(["tokens/s (of one client alone)", *map(str, told["tokens"])], rows)


# -- Agent Memory ------------------------------------------------------------------------------------


def _agent_memory(told: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[str]:
    yield "## Agent Memory"
    yield prose(f"{told['source']}: {told['setting']}. Time to the first token of a context of 4096 tokens.")
    line = _last(lines, "switch")
    yield from _ours(line, "switch")
    rows: list[list[object]] = [
        [f"{row['model']}, M4 Pro", row["cold_s"], row["warm_s"], row["cold_s"] / row["warm_s"]]
        for row in told["warm_4k"]
    ]
    for switch in _switches(line):
        cold = switch["switch_ms"]["median"] * switch["reprefill_over_switch"] / 1e3
        warm = switch["ttft_ms"]["median"] / 1e3
        rows.append([f"ours, from {switch['tier']}", cold, warm, cold / warm])
    yield table(["seconds", "computed anew", "warm", "times"], rows)


def _switches(line: Line | None) -> Iterator[Mapping[str, Any]]:
    """Ours at 4096 tokens and 4 bits, on the disk as it is; of the first model."""
    if line is None:
        return
    figures = line["figures"].get("models", [line["figures"]])[0]
    for run in figures["runs"]:
        if run["bits"] == 4:
            yield from (row for row in run["switches"] if row["tokens"] == 4096 and not row["bytes_per_s"])
