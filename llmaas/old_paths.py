"""The import paths of the release before this one: they work for one release more, with a DeprecationWarning.

Law: knows modules by their paths only, and imports one when its old path is used. To end the old paths, delete this
module, its test, and the calls of ``keep_old_modules`` and ``keep_old_names``.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader
else:  # it imports zipfile and more, for which 'import llmaas' would wait
    Loader = object

_PACKAGE = "llmaas."
_ROWS = """
actions                 planner.actions
api.maps                api.record_maps
api.session             api.client_session
api.sync                api.client api.operations
api.unix                api.server
chat                    service.chat
cli.demo_app            cli.demo.app
cli.demo_crew           cli.demo.crew
cli.demo_daemon         cli.demo.daemon cli.demo.memory
cli.demo_data           cli.demo.data
cli.demo_plan           cli.demo.plan cli.demo.pace cli.demo.schedule cli.demo.times
cli.demo_plot           cli.demo.plot
cli.demo_records        cli.demo.records
cli.demo_report         cli.demo.report cli.demo.figures cli.demo.lines
cli.demo_run            cli.demo.run
cli.demo_summary        cli.demo.summary
cli.demo_view           cli.demo.view cli.demo.plain_view cli.demo.live_view cli.demo.tier_bar
cli.doctor_checks       cli.doctor.checks cli.doctor.finding cli.doctor.model cli.doctor.store cli.doctor.daemon
cli.doctor_host         cli.doctor.host
cli.doctor_store        cli.doctor.damage
config_kinds            config.kinds
engine.adaptive         engine.adaptive_threads
engine.llama_adapters   engine.llama.adapters
engine.llama_batch      engine.llama.batch
engine.llama_blob       engine.llama.state_blob
engine.llama_cells      engine.llama.cells
engine.llama_chat       engine.llama.chat
engine.llama_grammar    engine.constraint.compiler engine.constraint.gbnf engine.constraint.schema_reader
engine.llama_learn      engine.llama.learn_layout
engine.llama_lib        engine.llama.lib
engine.llama_model      engine.llama.model engine.llama.context
engine.llama_probe      engine.llama.query_probe engine.llama.sampled_queries
engine.llama_rope       engine.llama.rope
engine.llama_sampling   engine.llama.sampling
engine.llama_slabs      engine.llama.slabs
engine.llama_state      engine.llama.state_layout engine.llama.buffers
engine.llama_steps      engine.llama.decode_run
engine.logprobs         service.logprobs
engine.shelf            engine.adapter_cache
events                  planner.events
governor                host.thermal
kvchunks.cipher         kvchunks.store.cipher
kvchunks.codec_header   kvchunks.codec.header
kvchunks.codec_planes   kvchunks.codec.planes
kvchunks.kernels        kvchunks.codec.kernels kvchunks.codec.kernels_native
kvchunks.kernels_keys   kvchunks.codec.kernels_channels
kvchunks.kernels_numpy  kvchunks.codec.kernels_numpy
kvchunks.master_key     kvchunks.store.master_key
kvchunks.meter          kvchunks.tiering.sensitivity_worker
kvchunks.payload        kvchunks.store.payload_files
kvchunks.pool           kvchunks.tiering.pool
kvchunks.store_adapters kvchunks.store.adapters
kvchunks.store_check    kvchunks.store.check
kvchunks.store_chunks   kvchunks.store.chunks
kvchunks.store_files    kvchunks.store.syscalls
kvchunks.store_index    kvchunks.store.index
kvchunks.store_keys     kvchunks.store.data_keys
kvchunks.store_records  kvchunks.store.rows kvchunks.store.reports
kvchunks.store_root     kvchunks.store.lock
kvchunks.store_salvage  kvchunks.store.repair
kvchunks.store_schema   kvchunks.store.schema
kvchunks.store_tokens   kvchunks.store.contexts
kvchunks.swap_writer    kvchunks.tiering.disk_writer
kvchunks.tolerance      kvchunks.codec.sensitivity
models                  config.models
planner_bits            planner.bit_budget
planner_costs           planner.cost_model
planner_disk            planner.disk_quota
planner_lower           planner.lowering
planner_read            planner.read_ahead
planner_state           planner.settings planner.jobs planner.cell_table planner.tally
planner_steps           planner.batching
planner_swap            planner.pool_books
planner_switch          planner.switching
planner_turns           planner.admission
planner_write           planner.write_back
policies.bounds         policies.eviction.belady
policies.budget         policies.pool_budget
policies.costs          policies.linear_cost
policies.governor       policies.duty
policies.members        policies.eviction.rankings
policies.precision      policies.bit_price.llms
policies.price          policies.bit_price policies.bit_price.steps policies.bit_price.price_book
policies.rates          policies.rate_limits
policies.threads        policies.thread_count
pressure                host.memory host.pressure
recorder                service.recorder
replay_profiles         replay.prices
service_adapters        service.adapters
service_budget          service.budgets
service_calls           service.call service.turn_spans
service_contexts        service.live_context service.directory
service_host            service.host_share
service_loop            service.interpreter service.loop_bridge
service_runner          service.runner service.refusals
service_settings        service.settings
service_shift           service.shift service.pending_turn
stream                  service.stream
trace                   traces.call
"""
MODULES: dict[str, tuple[str, ...]] = {
    _PACKAGE + old: tuple(_PACKAGE + name for name in new) for old, *new in map(str.split, _ROWS.strip().splitlines())
}
"""Old path of a module: the modules that have its names now."""

NAMES: dict[str, dict[str, str]] = {
    "llmaas.api.client": {
        "llmaas.api.async_client": "AsyncClient AsyncStream",
        "llmaas.api.given_messages": "Messages",
        "llmaas.api.operations": "GREEDY",
    },
    "llmaas.config": {
        "llmaas.config.settings": "Config Setting SETTINGS PREFIX Environ flag variable",
        "llmaas.config.cpus": "allowed_cpus",
        "llmaas.config.sources": "RESERVED load unknown_variables",
    },
    "llmaas.engine.llama": {"llmaas.engine.llama.engine": "LlamaEngine"},
    "llmaas.host": {"llmaas.host.priority": "lower_priority autogroups can_bind bind"},
    "llmaas.kvchunks.codec": {"llmaas.kvchunks.codec.codec": "Codec SINKS sinks_at"},
    "llmaas.kvchunks.store": {"llmaas.kvchunks.store.store": "Store INDEX"},
    "llmaas.planner": {"llmaas.planner.planner": "Planner"},
    "llmaas.replay": {
        "llmaas.replay.simulator": "Replay",
        "llmaas.replay.contexts": "context_id",
        "llmaas.replay.report": "ReplayReport CallReport",
        "llmaas.replay.bounds": "belady unbounded",
    },
    "llmaas.service": {"llmaas.service.service": "Service"},
}
"""Modules whose path has another meaning now: the modules that have their names, and which names."""


class _OldModules(Loader):
    """Finds the modules of ``MODULES`` where nothing else is found; a module at an old path has the new one's names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        """None: an ordinary module is made."""

    def exec_module(self, module: ModuleType) -> None:
        homes = MODULES[module.__name__]
        _warn(module.__name__, " and ".join(homes))
        for home in homes:
            names = vars(importlib.import_module(home))
            vars(module).update({name: value for name, value in names.items() if not name.startswith("_")})


def keep_old_modules() -> None:
    sys.meta_path.append(_OldModules())


def keep_old_names(module: str) -> None:
    """Let ``module``, while it is imported, pass on the names that it has in ``NAMES``."""
    homes = {name: home for home, names in NAMES[module].items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", f"{homes[name]}.{name}")
        return getattr(importlib.import_module(homes[name]), name)

    vars(sys.modules[module])["__getattr__"] = find  # not by assignment: type checkers would let every name pass


def _warn(old: str, new: str) -> None:
    """At the importing line: the interpreter's own frames between are not counted."""
    warnings.warn(f"{old} is now {new}; the next release has no {old}", DeprecationWarning, stacklevel=3)
