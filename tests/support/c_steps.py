"""The C library of decode steps, if it is there in this version: without it steps run one by one, and tell nothing."""

from __future__ import annotations

from llmaas.engine.llama import decode_run
from llmaas.native import load_library

STEPS = load_library(decode_run.__file__, "_steps", lambda library: bool(library.steps_version() >= 5))
C_STEPS = STEPS is not None
