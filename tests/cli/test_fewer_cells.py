"""A model of several is loaded with fewer cells than its settings name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.cli.runtime import service_settings, with_fewer_cells
from llmaas.cli.serve_several import cell_bytes, stored_bytes
from llmaas.config.settings import Config
from llmaas.config.sources import load
from llmaas.kvchunks.store.rows import ContextRow, ContextSummary
from llmaas.model_files.gguf import examine_files
from llmaas.records import AppId, ContextId, Message
from tests.cli.conftest import Daemon

MIB = 1 << 20
POOL, PROGRAM, STARTER = 64 * MIB, 150 * MIB, 50 * MIB
"""PROGRAM: what the front process expects a process to take beside weights, cells and POOL; STARTER: that which makes
the others."""


def config(root: Path, **settings: str) -> Config:
    return load({"cells": "8192", **settings}, {"HOME": str(root)}).config


def context_of(n_tokens: int) -> ContextSummary:
    return ContextSummary(ContextRow(ContextId("c"), AppId("0/a"), "c", "m", "v", 0.0, 0.0, n_tokens), 1, 1)


@pytest.mark.parametrize(
    ("cells", "longest", "expected"),
    [(2048, 0, 2048), (2048, 1500, 2048), (2048, 5000, 5376), (2048, 8100, 8192), (8192, 0, 8192)],
)
def test_it_gets_what_it_is_given_or_what_its_longest_context_needs(
    tmp_path: Path, cells: int, longest: int, expected: int
) -> None:
    given = config(tmp_path)
    assert with_fewer_cells(given, cells, [context_of(longest), context_of(10)]).cells == expected


def test_slices_fit_into_fewer_cells_and_apps_may_keep_as_much_text_as_before(tmp_path: Path) -> None:
    before = config(tmp_path, cells="1048576", prefill_slice="2048")
    now = with_fewer_cells(before, 1024, [])
    assert (now.cells, now.prefill_slice) == (1024, 1024)
    assert service_settings(now).app_text_bytes == service_settings(before).app_text_bytes == 64 << 20


def test_two_real_models_share_memory_that_is_too_small_for_all_cells_of_both(tmp_path: Path, model_path: Path) -> None:
    facts, size = examine_files(model_path)
    per_cell = cell_bytes(facts)
    budget = STARTER + 2 * (size + PROGRAM + POOL) + (4096 + 2100) * per_cell
    flags = ("--models", "all", "--models-bytes", str(budget), "--repack", "off", "--models-bits", "4")
    shape = ("--cells", "4096", "--least-cells", "1024", "--pool-bytes", str(POOL), "--models-disk-bytes", "100M")
    daemon = Daemon(tmp_path, more=(*flags, *shape))
    environ = os.environ | {"LLMAAS_DATA_DIR": str(daemon.data_dir)}
    for name in ("one", "two"):
        add = [sys.executable, "-m", "llmaas", "model", "add", name, str(model_path)]
        subprocess.run(add, env=environ, check=True, capture_output=True)
    daemon.start()
    try:
        limits, quotas = {}, {}
        with Client(daemon.socket, app="t", model="one") as one, Client(daemon.socket, app="t", model="two") as two:
            for name, client in (("one", one), ("two", two)):
                limits[name] = client.server["context_limit"]
                with client.generate(client.context("c").id, [Message("user", "hello")], max_tokens=4) as answer:
                    assert [piece for piece in answer if piece.text]
            quotas = {name: client.stats()["disk_bytes"]["quota"] for name, client in (("one", one), ("two", two))}
        assert limits == {"one": 4096, "two": 2048}, "nobody had to leave"
        assert sum(quotas.values()) <= 100 * MIB and min(quotas.values()) > 0
    finally:
        assert daemon.stop() == 0
    assert "cells: 2048 of 4096" in daemon.log and "leaves memory" not in daemon.log
    assert "Traceback" not in daemon.log
    assert stored_bytes(daemon.data_dir) > 0, "that is where a store keeps its chunks"
