"""What a model does, by what its file says."""

from __future__ import annotations

import pytest

from llmaas.config.model_kinds import RANK, ModelKind, kind_of


@pytest.mark.parametrize(
    ("architecture", "causal", "pooling", "kind"),
    [
        ("llama", None, None, ModelKind.WRITER),
        ("qwen3", True, 3, ModelKind.WRITER),
        ("qwen3", None, RANK, ModelKind.WRITER),
        ("llama", False, None, ModelKind.EMBEDDER),
        ("bert", False, 2, ModelKind.EMBEDDER),
        ("gemma-embedding", None, 1, ModelKind.EMBEDDER),
        ("t5encoder", None, None, ModelKind.EMBEDDER),
        ("bert", False, RANK, ModelKind.OTHER),
        ("t5", None, None, ModelKind.OTHER),
        ("llada", None, None, ModelKind.OTHER),
        ("eagle3", None, None, ModelKind.OTHER),
    ],
)
def test_a_model_is_of_one_kind(architecture: str, causal: bool | None, pooling: int | None, kind: ModelKind) -> None:
    found, why = kind_of(architecture, causal, pooling)
    assert found is kind and bool(why) == (kind is ModelKind.OTHER)
