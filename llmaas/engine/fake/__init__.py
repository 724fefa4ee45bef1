"""The engine without a model: for tests, benches and demonstrations of the service around it."""

from llmaas.engine.fake.adapters import fake_adapter
from llmaas.engine.fake.engine import FakeEngine
from llmaas.engine.fake.text import BOS, EOS, IM_END, IM_START, N_VOCAB

__all__ = ["BOS", "EOS", "IM_END", "IM_START", "N_VOCAB", "FakeEngine", "fake_adapter"]
