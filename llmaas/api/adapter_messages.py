"""The requests about LoRA adapters.

Law: pure.
"""

from __future__ import annotations

from llmaas.frozen import frozen


@frozen
class ListAdapters:
    """The LoRA adapters that calls may name."""


@frozen
class AdapterAdd:
    """Register a file of the daemon's machine under a name; ``path`` is absolute."""

    name: str
    path: str


@frozen
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
