"""``llmaas plan``: what a device would hold, and how fast it would switch, without having it.

Law: nothing is measured and no daemon is asked: prices are of tables, or what a daemon has learned here; the decisions
are the planner's that serves.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from llmaas.cli.machine import ram
from llmaas.cli.options import add_settings, configured, positive
from llmaas.cli.out import human_bytes, print_json, table
from llmaas.cli.planner_choices import batch_tokens, costs_path, planner_choices
from llmaas.config import models
from llmaas.config.kinds import size
from llmaas.config.settings import Config
from llmaas.errors import BadRequest
from llmaas.records import NO_QUOTA
from llmaas.replay.planning import PlannedModel, RamPlan, divide_ram, expected, held, settings_of
from llmaas.replay.prices import DEVICES, MACHINES, MODELS, Costs, learned_prices, priced, weights_bytes
from llmaas.traces.call import TraceCall
from llmaas.traces.files import load
from llmaas.traces.generators import ABOUT, generate

_SETTINGS = ["cells", "pool_bytes", "disk_bytes", "sequences", "bits", "prefill_slice", "max_running"]
_MEASURED = "measured"
_LENGTH = 4096
_EPILOG = """\
examples:
  llmaas plan --model 1B --ram 8G --disk ufs4 --machine phone --apps 30
  llmaas plan --model 0.1B --ram 1G --reserve 512M --disk sd --machine board --length 2048
  llmaas plan --measured --ram 2G --apps 60 --json        as fast as the daemon was here
  llmaas plan --pattern phone --bits 3.5 --pool-bytes 64M

RAM is divided: --reserve stays for others, then come weights, the program, cells for the longest context or a quarter
of the rest, and the pool. A trace of calls (docs/traces.md) is then replayed with these sizes, in virtual time.

--measured takes what a daemon has learned of this machine when it ended (DATA_DIR.costs.json); computing with another
model is taken to be slower by as much as its weights are larger. Else prices are those of --disk and --machine, with
the sources in llmaas/replay/prices.py. docs/planning.md says how far predictions were from what was measured.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "--model", metavar="FILE|NAME", help=f"a GGUF file, or one of {', '.join(MODELS)} (default: the packaged model)"
    )
    parser.add_argument("--ram", type=_size, metavar="SIZE", help="of the device (default: that of this machine)")
    parser.add_argument("--reserve", type=_size, metavar="SIZE", help="of it, for others (default: half)")
    parser.add_argument("--disk", choices=DEVICES, help="the storage (default: nvme, or what was measured)")
    parser.add_argument("--machine", choices=MACHINES, default="pc", help="what computes (default: %(default)s)")
    parser.add_argument(
        "--measured",
        nargs="?",
        const="",
        metavar="DATA_DIR",
        help="speeds that a daemon with this data directory has learned (default: the configured one)",
    )
    parser.add_argument("--apps", type=positive(int), default=8, metavar="N", help="contexts (default: %(default)s)")
    parser.add_argument(
        "--length", type=positive(int), metavar="TOKENS", help=f"of a context at most (default: {_LENGTH})"
    )
    traces = parser.add_mutually_exclusive_group()
    traces.add_argument(
        "--pattern", choices=[name for name in ABOUT if name != "evening"], default="markov", help="who is called next"
    )
    traces.add_argument("--trace", type=Path, metavar="FILE", help="calls of your own, in place of a pattern")
    parser.add_argument("--hours", type=positive(float), default=24.0, help="of the pattern (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="another trace of the pattern (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_settings(parser, _SETTINGS)


def run(args: argparse.Namespace) -> int:
    found = plan(args, configured(args))
    if args.json:
        print_json(found)
    else:
        _show(found)
    return 0


def plan(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """All that the command prints. Raises BadRequest."""
    model, parameters = _model(args.model)
    length = args.length or min(_LENGTH, model.limit)
    if length > model.limit:
        raise BadRequest(f"{model.name} takes {model.limit} tokens, not {length}")
    trace = load(args.trace) if args.trace else _made(args, length)
    contexts, longest = _contexts(trace)
    choices = planner_choices(config)
    memory = divide_ram(
        model,
        choices,
        ram=args.ram or _own_ram(),
        others=(args.ram or _own_ram()) // 2 if args.reserve is None else args.reserve,
        contexts=args.apps if args.trace is None and args.pattern != "phone" else contexts,
        length=max(longest, length),
        n_cells=config.cells if args.cells is not None else None,
        pool=config.pool_bytes if args.pool_bytes is not None else None,
    )
    choices = dataclasses.replace(choices, pool_bytes=memory.pool)
    costs, source = _costs(args, config, model, parameters)
    settings = settings_of(model, choices, memory, n_seqs=config.sequences, max_batch=batch_tokens(config))
    return {
        "model": {"name": model.name, "weights_bytes": model.weights_bytes, "token_bytes": model.geometry.token_bytes},
        "bits": "K{} V{}".format(*config.bits) if isinstance(config.bits, tuple) else config.bits,
        "ram": dataclasses.asdict(memory),
        "prices": {"source": source, **dataclasses.asdict(costs)},
        "held": [dataclasses.asdict(row) for row in held(model, choices, memory, config.disk_bytes, costs)],
        "trace": {
            "what": str(args.trace) if args.trace else args.pattern,
            "contexts": contexts,
            "hours": (trace[-1].t - trace[0].t) / 3600 if trace else 0.0,
            "longest": longest,
        },
        "expected": expected(trace, settings, costs),
    }


def _model(name: str | None) -> tuple[PlannedModel, float]:
    """The model, and how many parameters it has. Raises ModelUnreadable."""
    if name in MODELS:
        row = MODELS[name]
        return PlannedModel(name, row.geometry, weights_bytes(row.parameters), row.trained), row.parameters
    from llmaas.engine.llama.model import LlamaModel  # loads llama.cpp

    found = LlamaModel(models.find(Path(name) if name else None), weights=False)
    found.refuse_without_text()
    if reason := found.why_not_chunkable():
        raise BadRequest(f"this counts chunks, and contexts of {found.name} have none: {reason}")
    return PlannedModel(found.name, found.geometry(), found.size_bytes, found.n_ctx_train), float(found.parameters)


def _made(args: argparse.Namespace, length: int) -> list[TraceCall]:
    return list(generate(args.pattern, contexts=args.apps, limit=length, seed=args.seed, hours=args.hours))


def _contexts(trace: list[TraceCall]) -> tuple[int, int]:
    """How many contexts a trace has, and the tokens of its longest."""
    lengths: dict[tuple[str, str], int] = {}
    for call in trace:
        key = call.app, call.context
        lengths[key] = lengths.get(key, 0) + call.prompt + call.generate
    if not lengths:
        raise BadRequest("the trace has no calls")
    return len(lengths), max(lengths.values())


def _own_ram() -> int:
    found = ram()
    if found is None:
        raise BadRequest("this machine does not say how much RAM it has", hint="Give --ram.")
    return found.total


def _costs(args: argparse.Namespace, config: Config, model: PlannedModel, parameters: float) -> tuple[Costs, str]:
    """Prices, and where they come from."""
    documented = priced(DEVICES[args.disk or "nvme"], MACHINES[args.machine], parameters)
    if args.measured is None:
        return documented, f"tables: {args.disk or 'nvme'}, {args.machine}"
    from llmaas.service import costs_file

    place = Path(args.measured).absolute() if args.measured else config.data_dir
    found = costs_file.read(costs_path(dataclasses.replace(config, data_dir=place)))
    if found.costs.compute is None or found.costs.place is None:
        raise BadRequest(
            "that daemon has not learned what computing and loading take",
            hint="Let it answer some prompts of 20 tokens or more in contexts that take turns, and end it.",
        )
    times = model.weights_bytes / found.weights_bytes if found.weights_bytes else 1.0
    own_disk = args.disk is None and found.costs.read is not None
    disk = "its disk" if own_disk else f"tables: {args.disk or 'nvme'}"
    prices = learned_prices(found.costs, documented, times=times, own_disk=own_disk)
    return prices, f"learned with {found.model}; {disk}"


# -- shown to people ---------------------------------------------------------------------------------


def _show(found: dict[str, Any]) -> None:
    memory, model, costs, trace = RamPlan(**found["ram"]), found["model"], found["prices"], found["trace"]
    expected, parts = found["expected"], found["expected"]["from"]
    size = f"{human_bytes(model['weights_bytes'])} of weights, {human_bytes(model['token_bytes'])} of KV a token"
    print(f"model   {model['name']}: {size} in cells, at {found['bits']} bits outside")
    shares = {"others": memory.others, "weights": memory.weights, "program": memory.own}
    shares |= {f"{memory.n_cells} cells": memory.cells, "pool": memory.pool, "free": memory.free}
    print("RAM     " + ", ".join(f"{name} {human_bytes(n)}" for name, n in shares.items()))
    prefill, decode = 1 / costs["prefill_token"], 1 / (costs["step"] + costs["decode_token"])
    disk = "nothing" if not costs["disk_read_byte"] else f"{1e-6 / costs['disk_read_byte']:.0f} MB/s"
    print(f"speed   prefill {prefill:.0f}, decode {decode:.0f} tokens/s, reading {disk} ({costs['source']})\n")
    rows = [
        [row["length"], row["in_cells"], row["in_pool"], _many(row["on_disk"]), *_times(row)] for row in found["held"]
    ]
    head = ["CONTEXTS OF", "IN CELLS", "IN POOL", "ON DISK", "BACK FROM POOL", "FROM DISK", "COMPUTED ANEW"]
    print(table(head, rows, sys.stdout))
    who = f"{trace['contexts']} contexts of up to {trace['longest']} tokens"
    print(f"\n{trace['what']}: {who}, {expected['calls']} calls in {trace['hours']:.0f} h\n")
    rows = [
        ["switch, mean", f"{expected['switch_ms_mean']:.1f} ms"],
        ["switch, p50", f"{expected['switch_ms_p50']:.1f} ms"],
        ["switch, p99", f"{expected['switch_ms_p99']:.1f} ms"],
        ["the same computed anew, p50", f"{expected['anew_ms_p50']:.0f} ms"],
        ["first token, p50", f"{expected['ttft_ms_p50']:.0f} ms"],
        ["first token, p99", f"{expected['ttft_ms_p99']:.0f} ms"],
        ["tokens from", ", ".join(f"{name} {part:.0%}" for name, part in parts.items())],
        ["written a day", human_bytes(expected["bytes_written_a_day"])],
    ]
    print(table(["EXPECTED", ""], rows, sys.stdout))


def _times(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:.4g} ms" for name in ("pool_ms", "disk_ms", "anew_ms")]


def _many(n: int) -> str:
    return "any number" if n > NO_QUOTA >> 32 else str(n)


# -- arguments ---------------------------------------------------------------------------------------


def _size(text: str) -> int:
    kind = size(1 << 20)
    try:
        found: int = kind.read(text, Path())
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {kind.allowed}") from None
    return found
