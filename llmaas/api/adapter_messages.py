"""The requests about LoRA adapters.

Law: pure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ListAdapters:
    """The LoRA adapters that calls may name."""


@dataclass(frozen=True, slots=True)
class AdapterAdd:
    """Register a file of the daemon's machine under a name; ``path`` is absolute."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class AdapterRemove:
    """Forget an adapter; its file stays."""

    name: str


AdapterRequest = AdapterAdd | AdapterRemove
"""What changes which adapters there are."""
ADAPTER_OPERATIONS: dict[str, type[ListAdapters | AdapterRequest]] = {
    "adapters": ListAdapters,
    "adapter_add": AdapterAdd,
    "adapter_remove": AdapterRemove,
}
