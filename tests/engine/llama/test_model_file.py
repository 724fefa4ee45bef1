"""A model's file that is cut, written to, renamed or replaced while it is served."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from llmaas.calls import Sampling
from llmaas.engine.base import BatchItem, Halt, Row
from llmaas.engine.llama import map_guard
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.model_file import ModelFiles
from llmaas.engine.row_pipe import RowPipe, Telling
from llmaas.errors import ModelChanged, ModelUnreadable
from llmaas.native import load_library
from tests.support.c_steps import C_STEPS
from tests.support.random_models import write_llama

PROMPT = list(range(3, 40))
needs_guard = pytest.mark.skipif(
    not Path("/proc/self/maps").exists()
    or load_library(map_guard.__file__, "_map_guard", lambda library: bool(library.guard_version())) is None,
    reason="the C part was not built, or this is not Linux",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "model.gguf")


@pytest.fixture
def engine(path: Path) -> Iterator[LlamaEngine]:
    made = LlamaEngine(path, n_cells=512, n_seqs=2, n_threads=1)
    made.set_sampler(0, Sampling(temperature=0.0))
    yield made
    made.close()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def write(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 100)
        file.write(b"\x00\x01\x02\x03")


def overwrite(path: Path) -> None:
    """As ``cp`` does."""
    other = path.with_name("other")
    write_llama(other, seed=2)
    shutil.copyfile(other, path)


def write_and_set_the_time_back(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(bytes(40_000))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [cut, grow, write, overwrite, write_and_set_the_time_back])
def test_no_step_uses_a_file_that_was_changed_in_place(
    engine: LlamaEngine, path: Path, change: Callable[[Path], None]
) -> None:
    (token,) = engine.step([BatchItem(0, 0, PROMPT, 0)])
    assert token is not None
    change(path)
    for _ in range(2):
        with pytest.raises(ModelChanged, match=r"model\.gguf") as error:
            engine.step([BatchItem(0, len(PROMPT), [token], 0)])
        with pytest.raises(ModelChanged):
            engine.steps([BatchItem(0, len(PROMPT), [token], 0)], 8, 1.0, Halt())
    assert "restart" in error.value.hint
    assert engine.length(0) == len(PROMPT)
    assert np.isfinite(engine.export(0, 0, 20).k).all(), "what was computed before is still there"
    engine.drop(0, 0)
    assert engine.tokenize("the sea", special=False, bos=False)


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    """As ``mv`` does, and every good updater."""
    other = path.with_name("other")
    write_llama(other, seed=2)
    other.rename(path)


def rename(path: Path) -> None:
    path.rename(path.with_name("old"))


def chmod(path: Path) -> None:
    path.chmod(0o400)


@pytest.mark.parametrize("change", [delete, replace, rename, chmod])
def test_what_leaves_the_open_file_as_it_is_does_no_harm(
    engine: LlamaEngine, path: Path, change: Callable[[Path], None]
) -> None:
    before = engine.step([BatchItem(0, 0, PROMPT, 0)])
    change(path)
    assert engine.step([BatchItem(1, 0, PROMPT, 0)]) == before


def test_what_a_step_computed_while_the_file_was_written_to_is_not_used(
    engine: LlamaEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (token,) = engine.step([BatchItem(0, 0, PROMPT, 0)])
    assert token is not None
    real, looks = ModelFiles.check, []

    def check(files: ModelFiles) -> None:
        looks.append(1)
        if len(looks) == 2:  # the look after the step
            write(path)
        real(files)

    monkeypatch.setattr(ModelFiles, "check", check)
    with pytest.raises(ModelChanged):
        engine.steps([BatchItem(0, len(PROMPT), [token], 0)], 8, 1.0, Halt())
    assert (engine.length(0), len(looks)) == (len(PROMPT), 2)


@pytest.mark.parametrize("change", [cut, write, write_and_set_the_time_back, chmod])
def test_nothing_is_told_meanwhile_of_what_was_computed_with_another_file(
    engine: LlamaEngine, path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    (token,) = engine.step([BatchItem(0, 0, PROMPT, 0)])
    assert isinstance(token, int)
    real, looks = ModelFiles.check, []

    def check(files: ModelFiles) -> None:
        real(files)
        looks.append(1)
        if len(looks) == 1:  # the look before the steps
            change(path)

    monkeypatch.setattr(ModelFiles, "check", check)
    pipe, items, rows = RowPipe(), [BatchItem(0, len(PROMPT), [token], 0)], list[Row]()
    with nullcontext() if change is chmod else pytest.raises(ModelChanged):
        rows += engine.steps(items, 8, 1.0, Halt(), "", telling := Telling(pipe.writes_at, 1, 0, 0.0, 0.0))
    assert telling.told == 0 and pipe.read() == []
    assert engine.length(0) == len(PROMPT) + len(rows)
    if change is chmod and C_STEPS:  # the files are looked at, and the next steps tell again
        assert len(rows) == 1
        items = [BatchItem(0, len(PROMPT) + 1, [next(t for t in rows[0] if isinstance(t, int))], 0)]
        assert len(engine.steps(items, 8, 1.0, Halt(), "", telling)) > 1 and telling.told > 0


def test_every_part_of_a_split_model_is_watched(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for part in (*parts, tmp_path / "m-00001-of-00003.gguf", tmp_path / "other.gguf"):
        part.write_bytes(b"GGUF" * 1000)
    files = ModelFiles(parts[0])
    grow(tmp_path / "other.gguf")
    grow(tmp_path / "m-00001-of-00003.gguf")
    files.check()
    grow(parts[1])
    with pytest.raises(ModelChanged, match="m-00002-of-00002"):
        files.check()
    files.close()


def test_a_file_that_is_replaced_while_it_is_loaded_is_not_taken_for_the_first(path: Path) -> None:
    files = ModelFiles(path)
    files.check_path()
    replace(path)
    with pytest.raises(ModelUnreadable, match="replaced"):
        files.check_path()
    path.unlink()
    with pytest.raises(ModelUnreadable, match="replaced"):
        files.check_path()
    files.close()
    with pytest.raises(ModelUnreadable, match="No such file"):
        ModelFiles(path)


@needs_guard
def test_a_cut_in_the_middle_of_a_step_does_not_end_the_process(path: Path) -> None:
    script = f"""
import os
from pathlib import Path
from llmaas.engine.base import BatchItem
from llmaas.engine.llama.engine import LlamaEngine
from llmaas.engine.llama.model_file import ModelFiles
from llmaas.engine.row_pipe import RowPipe, Telling
from llmaas.errors import ModelChanged
engine = LlamaEngine(Path({str(path)!r}), n_cells=512, n_seqs=2, n_threads=2)
real = ModelFiles.check
def check(files):
    real(files)
    if os.stat(files.path).st_size > 5000:  # the look before the step
        os.truncate(files.path, 5000)
ModelFiles.check = check
try:
    engine.step([BatchItem(0, 0, list(range(3, 40)))])
except ModelChanged as error:
    print("refused:", error.message)
engine.close()
os.truncate({str(path)!r}, 0)
print(len(engine.__class__.__name__), "alive")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "refused:" in done.stdout and "has 5000 now" in done.stdout and "alive" in done.stdout


@needs_guard
def test_a_fault_elsewhere_still_ends_the_process(path: Path) -> None:
    script = f"""
import mmap, os
from pathlib import Path
from llmaas.engine.llama.map_guard import MapGuard
path = Path({str(path)!r})
with path.open("rb") as file, path.with_name("other").open("w+b") as other:
    guarded = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    other.write(bytes(10000))
    other.flush()
    free = mmap.mmap(other.fileno(), 0, prot=mmap.PROT_READ)
    guard = MapGuard([path])
    assert guard.active and not guard.hit()
    os.truncate(path, 0)
    assert guarded[5000] == 0 and guard.hit()
    os.truncate(path.with_name("other"), 0)
    print("now", flush=True)
    free[5000]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("now\n", -signal.SIGBUS), done.stderr


def test_looking_takes_microseconds(path: Path) -> None:
    """It is done twice for each run of steps, while the caches hold weights."""
    script = f"""
import time
from pathlib import Path
from llmaas.engine.llama.model_file import ModelFiles
from llmaas.engine.row_pipe import RowPipe, Telling
files = ModelFiles(Path({str(path)!r}))
def look():
    begin = time.perf_counter()
    for _ in range(1000):
        files.check()
    return (time.perf_counter() - begin) / 1000
print(min(look() for _ in range(20)))
files.close()
"""
    seconds = float(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout)
    assert seconds < 50e-6
