"""Engines: the port and its implementations.

Importing this package sets how long OpenMP's threads, which llama.cpp computes with, spin while they wait for each
other. Their default is to spin for milliseconds. That is as good as any on an idle machine; but beside a busy process
the spinning threads keep the computing one from its core, and decode falls to a tenth. docs/engine.md has the figures.
A value that the user has set stands.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
