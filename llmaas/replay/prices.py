"""Prices for replays: storage devices, machines and models that a trace can be tried on.

Law: figures only. Each row names where they come from; "assumed" means that no source was found.

Replays compare policies at the same prices. So what matters is the proportion of storage to computing, over orders of
magnitude.
"""

from __future__ import annotations

from dataclasses import replace

from llmaas.frozen import frozen
from llmaas.planner.cost_model import LearnedCosts
from llmaas.records import Geometry


@frozen
class Costs:
    """Prices of a device and a model, in seconds; the defaults are SmolLM2-135M on two x86 cores with NVMe."""

    step: float = 4e-3
    """Of a step, before its first token."""
    prefill_token: float = 2.6e-3
    prefill_back: float = 0.0
    """The same token, for each 1024 tokens before it."""
    decode_token: float = 4e-3
    code_byte: float = 1 / 1.0e9
    """Per coded byte, encoding or decoding."""
    cell_byte: float = 1 / 8.0e9
    """Per f16 byte put into or taken out of cells."""
    load: float = 0.0
    """Of a load, before its first chunk."""
    disk_latency: float = 2e-4
    disk_read_byte: float = 1 / 1.5e9
    disk_write_byte: float = 1 / 0.5e9

    def prefill(self, start: int, stop: int) -> float:
        """Seconds to compute tokens ``start`` .. ``stop - 1``, of a step."""
        n = stop - start
        return self.prefill_token * n + self.prefill_back * n * (start + stop) / 2 / 1024

    def place(self, coded: float, f16: float) -> float:
        """Seconds to decode chunks of so many bytes and put them into cells."""
        return self.load + coded * self.code_byte + f16 * self.cell_byte

    def read(self, coded: float) -> float:
        """Seconds to read so many bytes from DISK."""
        return self.disk_latency + coded * self.disk_read_byte


@frozen
class Storage:
    """A storage device: seconds before the first byte, and bytes per second."""

    latency: float
    read: float
    write: float


DEVICES: dict[str, Storage] = {
    # This project's own measurements on a virtual NVMe disk, page cache dropped (docs/format.md).
    "nvme": Storage(2e-4, 1.5e9, 0.5e9),
    # Samsung's announcement of the 870 EVO, SATA 6 Gb/s (2021): 560 MB/s read, 530 written; latency assumed.
    "sata": Storage(2e-4, 560e6, 530e6),
    # Samsung's announcement of eUFS 3.1 (2020): 2.1 GB/s read, 1.2 GB/s written; half of it, and the latency, assumed.
    "ufs31": Storage(1.5e-4, 1.05e9, 0.6e9),
    # Samsung's announcement of UFS 4.0 (2022): 4.2 GB/s read, 2.8 GB/s written; half of it, and the latency, assumed.
    "ufs4": Storage(1.5e-4, 2.1e9, 1.4e9),
    # Samsung's announcement of eMMC 5.1 (2015): 250 and 125 MB/s; latency assumed.
    "emmc": Storage(3e-4, 250e6, 125e6),
    # SD Association, class A1: at least 1500 reads a second, 10 MB/s sustained write; 80 MB/s (of UHS-I's 104) assumed.
    "sd": Storage(0.7e-3, 80e6, 10e6),
    # Assumed, usual for 7200 rpm.
    "hdd": Storage(12e-3, 160e6, 140e6),
}


@frozen
class Machine:
    """What a machine reaches in practice: operations per second in prefill, bytes per second of weights in decode,
    coded bytes per second in the codec, f16 bytes per second into cells."""

    flops: float
    weights: float
    code: float
    cells: float


MACHINES: dict[str, Machine] = {
    # Two x86 cores, SmolLM2-135M: 2.6 ms a token in prefill, 8 ms in decode, codec as in docs/compression.md.
    "pc": Machine(1.04e11, 1.0e10, 1.0e9, 8e9),
    # NVIDIA's data sheet, Jetson Orin NX 8 GB: 102 GB/s of memory, 1024 CUDA cores at 765 MHz, so 3.1e12 operations in
    # 16 bits; two thirds of the former and all of the latter (its tensor cores do more) assumed to be reached.
    "orin-nx": Machine(3.1e12, 6.8e10, 1.0e9, 8e9),
    # NVIDIA's data sheet, Jetson TX2: 59.7 GB/s, 1.33e12 operations in 16 bits; two thirds and half assumed.
    "tx2": Machine(6.7e11, 4.0e10, 0.5e9, 4e9),
    # Assumed: a phone of 2024, llama.cpp on its large cores, 15 tokens a second in prefill of 7B.
    "phone": Machine(2.0e11, 3.0e10, 1.0e9, 8e9),
    # LLMS (arXiv 2403.11805): 4096 tokens of Llama-2-7B in 22.92 s on a Xiaomi 14; the rest as "phone".
    "phone-npu": Machine(2.4e12, 3.0e10, 1.0e9, 8e9),
    # Assumed: four small cores of a single-board computer, LPDDR4X.
    "board": Machine(4.0e10, 8.0e9, 0.3e9, 3e9),
    # Assumed: a small discrete GPU; cells are filled over PCIe.
    "gpu": Machine(2.0e13, 3.0e11, 1.0e9, 8e9),
}


@frozen
class Model:
    """A model's size: number of parameters, and the geometry of its KV."""

    parameters: float
    geometry: Geometry
    trained: int
    """Tokens of the longest context that it was trained on."""
    ctx_limit: int = 4096
    """Tokens that replays use at most."""


def _gqa(n_layer: int, kv_heads: int, head_dim: int) -> Geometry:
    """Grouped-query attention: keys and values of the same width."""
    return Geometry(n_layer, kv_heads * head_dim, kv_heads * head_dim, head_dim, head_dim)


MODELS: dict[str, Model] = {
    # Layers, KV heads, head dimension and longest context: the models' published config.json.
    "0.1B": Model(0.135e9, _gqa(30, 3, 64), 8192),  # SmolLM2-135M
    "0.3B": Model(0.268e9, _gqa(18, 1, 256), 32768),  # Gemma-3-270m
    "0.5B": Model(0.494e9, _gqa(24, 2, 64), 32768),  # Qwen2.5-0.5B
    "1B": Model(1.24e9, _gqa(16, 8, 64), 131072),  # Llama-3.2-1B
    "1.5B": Model(1.54e9, _gqa(28, 2, 128), 32768),  # Qwen2.5-1.5B
    "3B": Model(3.21e9, _gqa(28, 8, 128), 131072),  # Llama-3.2-3B
    "llama-2-7b": Model(6.74e9, _gqa(32, 32, 128), 4096),  # Llama-2-7B: every head has KV of its own
    "8B": Model(8.03e9, _gqa(32, 8, 128), 131072),  # Llama-3.1-8B
}
_WEIGHT_BITS = 4.5
"""Of a quantized weight, with its scales: what decode reads for every token."""
_STEP_S = 1e-3
"""Assumed: what a step costs before its first token."""


def weights_bytes(parameters: float) -> int:
    """Bytes of the weights of a quantized model, where its file is not there to be asked."""
    return int(parameters * _WEIGHT_BITS / 8)


def costs(device: str, machine: str, model: str) -> Costs:
    """Prices of a storage device, a machine and a model, by their names in the tables; KeyError for others."""
    return priced(DEVICES[device], MACHINES[machine], MODELS[model].parameters)


def priced(storage: Storage, computer: Machine, parameters: float) -> Costs:
    """Prices of a model of so many parameters."""
    return Costs(
        step=_STEP_S,
        prefill_token=2 * parameters / computer.flops,
        decode_token=weights_bytes(parameters) / computer.weights,
        code_byte=1 / computer.code,
        cell_byte=1 / computer.cells,
        disk_latency=storage.latency,
        disk_read_byte=1 / storage.read,
        disk_write_byte=1 / storage.write,
    )


def learned_prices(learned: LearnedCosts, otherwise: Costs, *, times: float = 1.0, own_disk: bool = True) -> Costs:
    """Prices as a daemon has learned them; ``otherwise`` where it has not.

    ``times``: how much larger the weights are than those that it computed with; computing takes as much longer.
    ``own_disk``: the disk that it read from, else that of ``otherwise``.
    """
    found = otherwise
    if learned.compute is not None:
        token, back = learned.compute
        found = replace(found, prefill_token=times * token, prefill_back=times * back)
    if learned.decode is not None:
        step, sequence = learned.decode
        found = replace(found, step=times * step, decode_token=times * sequence)
    if learned.place is None:
        return found
    load, megabyte = learned.place
    found = replace(found, load=load, code_byte=megabyte / 1e6, cell_byte=0.0)  # what was timed has both
    if own_disk and learned.read is not None:
        # Learned is a load from its first byte to the last one placed, here the disk comes first and placing after it.
        latency, read = max(0.0, learned.read[0] - load), max(0.0, learned.read[1] - megabyte)
        found = replace(found, disk_latency=latency, disk_read_byte=read / 1e6)
    return found
