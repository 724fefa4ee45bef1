"""Nodes and models that a cluster's trace can be tried on.

Law: figures only. Machines, disks and the smaller models are those of ``replay.prices``. What a row adds is named with
its source there; "assumed" means that no source was found.
"""

from __future__ import annotations

from llmaas.frozen import frozen
from llmaas.policies.node_report import ModelTier, TransferCost
from llmaas.records import Geometry
from llmaas.replay.prices import DEVICES, MACHINES, MODELS, Machine, Model, Storage, weights_bytes

_CODED_BITS = 4.4
"""Of a value in coded chunks at 4 bits, with its scales (docs/compression.md: 403,264 bytes of 1,474,624 at 16)."""
_GB = 10**9
_GIGABIT, _TEN_GIGABIT = 117e6, 1.17e9
"""Bytes a second of TCP on Ethernet of 1500-byte frames."""


@frozen
class NodeProfile:
    """``memory``: bytes for models that run. ``cache``: for those that are parked, read at ``cache_read`` bytes/s.
    ``start``: seconds that an engine takes to begin, whatever it loads. ``lanes``: calls that are answered at once.
    """

    machine: Machine
    storage: Storage
    memory: int
    cache: int
    cache_read: float
    link: float
    lanes: int
    start: float = 0.3

    def load(self, tier: ModelTier) -> TransferCost:
        """What loading a model from there takes in fact."""
        rate = {ModelTier.MEMORY: self.cache_read, ModelTier.DISK: self.storage.read, ModelTier.AWAY: self.link}[tier]
        return TransferCost(self.start, 1 / rate)

    def prefill_token(self, model: ClusterModel) -> float:
        return 2 * model.parameters / self.machine.flops

    def decode_token(self, model: ClusterModel) -> float:
        return model.nbytes / self.machine.weights


@frozen
class ClusterModel:
    """``token_bytes``: of a token in coded chunks."""

    name: str
    parameters: float
    nbytes: int
    token_bytes: float

    @classmethod
    def of(cls, name: str, size: str) -> ClusterModel:
        """A model of one of the ``SIZES``; KeyError for others."""
        model = SIZES[size]
        coded = model.geometry.token_bytes * _CODED_BITS / 16
        return cls(name, model.parameters, weights_bytes(model.parameters), coded)


PROFILES: dict[str, NodeProfile] = {
    # Memory: what a device of 8, 8, 16, 8 GB leaves to models, assumed. Parked models are read at half of what RAM
    # gives (``Machine.weights``), assumed. A board, a phone and a PC by Ethernet or Wi-Fi of a gigabit.
    "board": NodeProfile(MACHINES["board"], DEVICES["emmc"], 4 * _GB, 2 * _GB, 4e9, _GIGABIT, 1),
    "phone": NodeProfile(MACHINES["phone"], DEVICES["ufs4"], 4 * _GB, 2 * _GB, 1.5e10, _GIGABIT, 1),
    "pc": NodeProfile(MACHINES["pc"], DEVICES["nvme"], 8 * _GB, 4 * _GB, 5e9, _GIGABIT, 2),
    "orin-nx": NodeProfile(MACHINES["orin-nx"], DEVICES["nvme"], 5 * _GB, 1 * _GB, 3e10, _GIGABIT, 2),
    # A GPU of 24 GB in a machine of 64; half of PCIe 4.0 x16 (31.5 GB/s), assumed, as that of the next.
    "gpu": NodeProfile(MACHINES["gpu"], DEVICES["nvme"], 20 * _GB, 48 * _GB, 1.5e10, _TEN_GIGABIT, 4, 1.0),
    # NVIDIA's data sheet, A100 80 GB: 3.12e14 operations in 16 bits, 2.0e12 B/s; half of each assumed.
    "server": NodeProfile(
        Machine(1.5e14, 1.0e12, 2e9, 1.5e10), DEVICES["nvme"], 72 * _GB, 192 * _GB, 1.5e10, _TEN_GIGABIT, 8, 1.0
    ),
}
SIZES: dict[str, Model] = MODELS | {
    # Layers, KV heads, head dimension and longest context: the models' published config.json.
    "14B": Model(14.8e9, Geometry(48, 1024, 1024, 128, 128), 32768),  # Qwen2.5-14B
    "32B": Model(32.8e9, Geometry(64, 1024, 1024, 128, 128), 32768),  # Qwen2.5-32B
    "70B": Model(70.6e9, Geometry(80, 1024, 1024, 128, 128), 131072),  # Llama-3.1-70B
}
